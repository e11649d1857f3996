//! Graph text: what parses prints again, and what does not says where and why.

use windlass_ir::text::{parse_graph, parse_graph_unverified, print_graph};
use windlass_ir::{Error, verify};
use windlass_tests::golden::{self, Command};

/// `text`: the graph printed. `text --error`: the message, and the text it points to.
fn text(command: &Command, input: &str) -> Result<String, String> {
    let graph = match parse_graph(input) {
        Ok(graph) => graph,
        Err(Error::Parse { span, message }) => return Ok(format!("{message}\n  in: {}", &input[span])),
        Err(other) => return Err(other.to_string()),
    };
    let printed = print_graph(&graph);
    let again = parse_graph(&printed).map_err(|error| format!("{error}, in\n{printed}"))?;
    match command.name.as_str() {
        "text" if again == graph => Ok(printed),
        "text" => Err(format!("the printed graph is another one:\n{printed}")),
        other => Err(format!("there is no command `{other}`")),
    }
}

#[test]
fn golden_text() {
    golden::check("text", text);
}

/// `verify`: the graph as it stands, types as annotated, and what the verifier says about it.
#[test]
fn golden_verify() {
    golden::check("verify", |_, input| {
        let graph = parse_graph_unverified(input).map_err(|error| error.to_string())?;
        match verify(&graph) {
            Ok(()) => Ok("valid".to_string()),
            Err(error) => Ok(error.to_string()),
        }
    });
}
