/* Trains by a compiled step: `program INPUT OUTPUT STEPS`. INPUT has the inputs of each step, one after another;
   OUTPUT gets the loss of each step, then the state. */

#include "step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Alignas(64) char arena[STEP_ARENA_BYTES];

int main(int count, char **arguments) {
    static const uint64_t sizes[] = STEP_STATE_BYTES;
    static const char *const names[] = STEP_STATE_NAMES;
    static char x[STEP_INPUT_0_BYTES], y[STEP_INPUT_1_BYTES], prediction[STEP_OUTPUT_1_BYTES];
    float loss;
    void *state[STEP_STATES];
    const void *inputs[STEP_INPUTS] = {x, y};
    void *outputs[STEP_OUTPUTS] = {&loss, prediction};
    if (count != 4 || sizeof loss != STEP_OUTPUT_0_BYTES) return 1;
    if (sizeof sizes / sizeof *sizes != STEP_STATES || strcmp(names[STEP_STATES - 1], "step") != 0) return 2;
    for (int i = 0; i < STEP_STATES; i++) {
        state[i] = malloc(sizes[i]);
        if (!state[i]) return 3;
        memset(state[i], 0x5a, sizes[i]);
    }
    memset(arena, 0xa5, sizeof arena);
    step_init(state);
    /* Where a step is refused the state stays. */
    if (step_step(state, inputs, outputs, 0) != 1 || step_step(state, inputs, outputs, arena + 8) != 1) return 4;
    FILE *in = fopen(arguments[1], "rb"), *out = fopen(arguments[2], "wb");
    if (!in || !out) return 5;
    for (int steps = atoi(arguments[3]); steps > 0; steps--) {
        if (fread(x, sizeof x, 1, in) != 1 || fread(y, sizeof y, 1, in) != 1) return 6;
        if (step_step(state, inputs, outputs, arena) != 0) return 7;
        fwrite(&loss, sizeof loss, 1, out);
    }
    for (int i = 0; i < STEP_STATES; i++) {
        fwrite(state[i], 1, sizes[i], out);
        free(state[i]);
    }
    fclose(in);
    return fclose(out) ? 8 : 0;
}
