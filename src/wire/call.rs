//! JSON-RPC 2.0 envelopes: one request on a stream, output beside it in `Data` and `Stderr` frames, one response.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::{Refusal, RefusalCode};

/// The methods a workspace may call on the laptop. Names are never reused.
pub const METHODS: [&str; 5] = ["tool.list", "tool.execute", "config.get", "auth.getToken", "file.read"];

/// The methods a laptop may call in the workspace. Names are never reused.
pub const WORKSPACE_METHODS: [&str; 3] = ["device.list", "device.add", "device.remove"];

/// Bytes of an id that is a text.
pub const MAX_ID: usize = 256;

/// A request. There is one to a stream, so `id` only has to be echoed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Always `"2.0"`.
    pub jsonrpc: String,
    /// Echoed in the response.
    pub id: Value,
    /// One of [`METHODS`].
    pub method: String,
    /// By name.
    #[serde(default)]
    pub params: Value,
}

/// A response: a result or an error, never both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Always `"2.0"`.
    pub jsonrpc: String,
    /// The request's.
    pub id: Value,
    /// What the method gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it gives nothing back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CallError>,
}

/// The error object of JSON-RPC 2.0. `data` carries our own refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallError {
    /// JSON-RPC's number for the class of the error.
    pub code: i64,
    /// The sentence.
    pub message: String,
    /// The refusal, whose code is finer than the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Refusal>,
}

impl Request {
    /// A request with the one id a stream needs.
    pub fn new(method: &str, params: Value) -> Request {
        Request { jsonrpc: "2.0".into(), id: Value::from(1), method: method.into(), params }
    }

    /// Reads a request; refuses what is not JSON-RPC 2.0. The id is held for as long as the call runs, and a megabyte
    /// of JSON may take a hundred in memory: so it is a number, a short text or null, as JSON-RPC has it.
    pub fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
        let request: Request = serde_json::from_slice(bytes)
            .map_err(|e| Refusal::new(RefusalCode::Malformed, format!("not a JSON-RPC request: {e}")))?;
        if request.jsonrpc != "2.0" {
            return Err(Refusal::new(RefusalCode::Unsupported, "only JSON-RPC 2.0 is spoken here"));
        }
        let short = match &request.id {
            Value::Null | Value::Number(_) => true,
            Value::String(id) => id.len() <= MAX_ID,
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
        };
        if !short {
            let text = format!("the id must be a number, null, or a text of at most {MAX_ID} bytes");
            return Err(Refusal::new(RefusalCode::Malformed, text));
        }
        Ok(request)
    }
}

impl Response {
    /// The response to `id`.
    pub fn new(id: Value, outcome: Result<Value, Refusal>) -> Response {
        let (result, error) = match outcome {
            Ok(value) => (Some(value), None),
            Err(refusal) => (None, Some(CallError::from(refusal))),
        };
        Response { jsonrpc: "2.0".into(), id, result, error }
    }

    /// What the call gave, or why it gave nothing.
    pub fn outcome(self) -> Result<Value, Refusal> {
        match (self.result, self.error) {
            (_, Some(error)) => Err(error.into()),
            (Some(value), None) => Ok(value),
            (None, None) => Ok(Value::Null),
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> CallError {
        let code = match refusal.code {
            RefusalCode::Malformed => -32700,
            RefusalCode::Unsupported => -32601,
            RefusalCode::InvalidArguments => -32602,
            RefusalCode::Internal => -32603,
            _ => -32000,
        };
        CallError { code, message: refusal.message.clone(), data: Some(refusal) }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Refusal {
        let code = error.data.map_or(RefusalCode::Other, |data| data.code);
        Refusal::new(code, super::refusal::printable(&error.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn golden_text() {
        let request = Request::new("tool.list", Value::Null);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"jsonrpc":"2.0","id":1,"method":"tool.list","params":null}"#);
        let refusal = Refusal::new(RefusalCode::NotDeclared, "no tool `x`");
        let text = serde_json::to_string(&Response::new(json!(1), Err(refusal.clone()))).unwrap();
        assert_eq!(
            text,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no tool `x`","data":{"code":"not_declared","message":"no tool `x`"}}}"#
        );
        assert_eq!(serde_json::from_str::<Response>(&text).unwrap().outcome(), Err(refusal));
    }

    #[test]
    fn other_versions_are_refused() {
        let refusal = Request::parse(br#"{"jsonrpc":"1.0","id":1,"method":"tool.list"}"#).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Unsupported);
    }

    #[test]
    fn an_id_is_small() {
        let parse =
            |id: Value| Request::parse(json!({"jsonrpc": "2.0", "id": id, "method": "m"}).to_string().as_bytes());
        for good in [json!(7), json!(null), json!("x".repeat(MAX_ID))] {
            assert_eq!(parse(good.clone()).unwrap().id, good);
        }
        for bad in [json!("x".repeat(MAX_ID + 1)), json!([1]), json!({"a": 1}), json!(true)] {
            assert_eq!(parse(bad).unwrap_err().code, RefusalCode::Malformed);
        }
    }

    /// The parser counts levels anew in a text that stands for a value, and such texts nest: as deep as a message allows.
    #[test]
    fn no_message_nests_deeper_than_a_stack() {
        const STACK: usize = 2 * 1024 * 1024;
        const LEVELS: usize = 120;
        let (open, close) = ("[".repeat(LEVELS), "]".repeat(LEVELS));
        let (mut text, mut next) = (String::new(), format!("{open}{close}"));
        while next.len() <= crate::wire::limits::MAX_MESSAGE - 100 {
            text = next;
            let inner = Value::from(text.as_str());
            next = format!("{open}{{\"$serde_json::private::RawValue\":{inner}}}{close}");
        }
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tool.execute","params":{text}}}"#);
        let judge = move || {
            if let Ok(request) = Request::parse(message.as_bytes()) {
                assert!(serde_json::to_vec(&request.clone()).is_ok());
            }
        };
        std::thread::Builder::new().stack_size(STACK).spawn(judge).unwrap().join().unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_a_refusal(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes);
        }
    }
}
