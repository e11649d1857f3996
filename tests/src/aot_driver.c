/* Runs the models of a shared library: `driver LIBRARY INPUT OUTPUT`.

   INPUT holds, for each model: the length of its name and the name, the numbers of inputs and outputs,
   each input's size and bytes, each output's size. Numbers have 64 bits. OUTPUT gets the outputs' bytes. */

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*run_function)(const void *const *, void *const *, void *);

static void fail(const char *what, const char *which) {
    fprintf(stderr, "%s: %s\n", what, which);
    exit(1);
}

static void *allocate(size_t alignment, size_t bytes) {
    void *data = aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
    if (!data) fail("out of memory", "");
    return data;
}

static void get(FILE *file, void *data, size_t bytes) {
    if (bytes && fread(data, 1, bytes, file) != bytes) fail("input ends early", "");
}

static uint64_t number(FILE *file) {
    uint64_t n;
    get(file, &n, sizeof n);
    return n;
}

static void *find(void *library, const char *name, const char *suffix) {
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s_%s", name, suffix);
    void *address = dlsym(library, symbol);
    if (!address) fail("no such symbol", symbol);
    return address;
}

static void run(void *library, const char *name, FILE *in, FILE *out) {
    uint64_t inputs = number(in), outputs = number(in);
    void **data = allocate(sizeof(void *), (inputs + outputs) * sizeof(void *));
    uint64_t *sizes = allocate(sizeof(uint64_t), (outputs + 1) * sizeof(uint64_t));
    for (uint64_t i = 0; i < inputs; i++) {
        uint64_t bytes = number(in);
        data[i] = allocate(64, bytes);
        get(in, data[i], bytes);
    }
    for (uint64_t i = 0; i < outputs; i++) {
        sizes[i] = number(in);
        data[inputs + i] = allocate(64, sizes[i]);
        memset(data[inputs + i], 0xa5, sizes[i]);
    }
    uint64_t arena_bytes = *(const uint64_t *)find(library, name, "arena_bytes");
    void *arena = allocate(64, arena_bytes);
    memset(arena, 0x5a, arena_bytes);
    run_function function;
    void *address = find(library, name, "run");
    memcpy(&function, &address, sizeof function);
    if (function((const void *const *)data, data + inputs, arena) != 0) fail("refused to run", name);
    for (uint64_t i = 0; i < outputs; i++) {
        void *result = data[inputs + i];
        if (sizes[i] && fwrite(result, 1, sizes[i], out) != sizes[i]) fail("cannot write", name);
    }
    for (uint64_t i = 0; i < inputs + outputs; i++) free(data[i]);
    free(arena);
    free(sizes);
    free(data);
}

int main(int count, char **arguments) {
    if (count != 4) fail("usage", "driver LIBRARY INPUT OUTPUT");
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) fail("cannot load", dlerror());
    FILE *in = fopen(arguments[2], "rb"), *out = fopen(arguments[3], "wb");
    if (!in || !out) fail("cannot open", arguments[in ? 3 : 2]);
    uint64_t length;
    while (fread(&length, 1, sizeof length, in) == sizeof length) {
        char name[128];
        if (length >= sizeof name) fail("a name is too long", "");
        get(in, name, length);
        name[length] = 0;
        run(library, name, in, out);
    }
    return fclose(out) == 0 ? 0 : 1;
}
