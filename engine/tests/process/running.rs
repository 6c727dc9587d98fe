//! The program as a process: its log line by line, requests over plain sockets, signals.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::schema::breach;

/// Only turns a broken program into a failure.
const LONG: Duration = Duration::from_secs(120);
pub const PROMPT: &str = "The secret of the prompt";

/// A running engine; killed when dropped. Every line that it logs must follow the schema of logs.
pub struct Running {
    child: Child,
    address: SocketAddr,
    lines: Receiver<Value>,
    /// Reads the lines, and returns what was wrong with them.
    reader: Option<JoinHandle<Vec<String>>>,
}

/// The schema of log lines, as users read it.
pub fn log_schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/log-schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn command(flags: &[&str]) -> Command {
    command_of("embedded://nano", flags)
}

pub fn command_of(model: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen-engine"));
    command
        .args([
            "serve",
            model,
            "--served-model-name",
            "nano",
            "--log-format",
            "json",
        ])
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--num-gpu-blocks-override",
            "1024",
        ])
        .args(flags)
        .stderr(Stdio::piped());
    let variables = std::env::vars().map(|(name, _)| name);
    for name in variables.filter(|name| name.starts_with("OTEL_") || name.starts_with("HF_")) {
        command.env_remove(name);
    }
    command
}

impl Running {
    pub fn start(command: Command) -> Self {
        let mut running = Self::spawn(command);
        let listening = running.line("listening");
        running.address = listening["address"].as_str().unwrap().parse().unwrap();
        running.line("ready");
        running
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            let schema = log_schema();
            let mut breaches = Vec::new();
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                breaches.extend(breach(&schema, &schema, &line));
                // Nobody need listen any more.
                let _ = sender.send(line);
            }
            breaches
        });
        Self {
            child,
            address: ([127, 0, 0, 1], 0).into(),
            lines,
            reader: Some(reader),
        }
    }

    /// The next line whose message begins so.
    pub fn line(&self, message: &str) -> Value {
        loop {
            let line = self
                .lines
                .recv_timeout(LONG)
                .unwrap_or_else(|_| panic!("no line {message}"));
            if line["message"]
                .as_str()
                .is_some_and(|text| text.starts_with(message))
            {
                return line;
            }
        }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> String {
        let mut text = String::new();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.send(&request).read_to_string(&mut text).unwrap();
        text
    }

    pub fn complete(&self, headers: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        self.send(&format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    pub fn signal(&self) {
        terminate(&self.child);
    }

    /// All lines until it has ended, and how it did.
    pub fn end(mut self) -> (Vec<Value>, ExitStatus) {
        let lines = self.lines.iter().collect();
        (lines, self.child.wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let breaches = self.reader.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert_eq!(breaches.unwrap().unwrap(), Vec::<String>::new());
        }
    }
}

/// Several streams as long as the model allows: minutes, if nobody ends them.
pub fn endless() -> Value {
    json!({"prompt": PROMPT, "stream": true, "ignore_eos": true, "n": 12, "max_tokens": 4000})
}

pub fn first_chunk(stream: TcpStream) -> BufReader<TcpStream> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended early");
    }
    reader
}

pub fn rest(mut reader: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

pub fn terminate(child: &Child) {
    let id = child.id().to_string();
    let mut kill = Command::new("kill");
    assert!(kill.args(["-TERM", &id]).status().unwrap().success());
}
