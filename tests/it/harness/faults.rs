//! A proxy in front of the S3 server that treats some requests badly: it never answers, answers for the store, or cuts
//! the store's answer off. One request per connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is taken, and nothing is ever said. The connection is cut by [`Faults::heal`].
    Hang,
    /// It waits on its way to the store, until [`Faults::heal`].
    Wait,
    /// The store never sees it; this is the answer's status and body.
    Answer(u16, &'static str),
    /// The store does what it is asked for; of its answer, head and all, only so many bytes come through.
    Cut(u64),
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    part: &'static str,
    fault: Fault,
    /// Requests that it is for; the others pass.
    times: usize,
    met: usize,
}

/// A running proxy; it ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Faults {
    pub address: SocketAddr,
    upstream: SocketAddr,
    rules: Arc<Mutex<Vec<Rule>>>,
    healed: watch::Sender<usize>,
}

impl Faults {
    /// Forwards everything to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, upstream, rules: Arc::default(), healed: watch::channel(0).0 };
        let proxy = this.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(proxy.clone().connection(client));
            }
        });
        this
    }

    /// From now on, the next `times` requests of this method whose target has this part. Earlier rules go first.
    pub fn add(&self, method: &'static str, part: &'static str, times: usize, fault: Fault) {
        self.rules().push(Rule { method, part, fault, times, met: 0 });
    }

    /// Everything passes again, and what hangs is cut.
    pub fn heal(&self) {
        self.rules().clear();
        self.healed.send_modify(|times| *times += 1);
    }

    /// How many requests were treated badly by the rules that there are.
    pub fn met(&self) -> usize {
        self.rules().iter().map(|rule| rule.met).sum()
    }

    /// Waits until so many requests were treated badly.
    pub async fn have_met(&self, count: usize) {
        super::until("the store's faults are met", || async { (self.met() >= count).then_some(()) }).await;
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, line: &str) -> Option<Fault> {
        let (method, target) = line.split_once(' ')?;
        let mut rules = self.rules();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.met < rule.times && rule.method == method && target.contains(rule.part))?;
        rule.met += 1;
        Some(rule.fault.clone())
    }

    async fn connection(self, mut client: TcpStream) {
        let mut healed = self.healed.subscribe();
        // A client that goes away ends it as well.
        let _over = self.request(&mut client, &mut healed).await;
    }

    async fn request(&self, client: &mut TcpStream, healed: &mut watch::Receiver<usize>) -> std::io::Result<()> {
        let (head, rest) = head(client).await?;
        let line = head.split("\r\n").next().unwrap_or_default();
        match self.fault(line) {
            Some(Fault::Hang) => {
                let mut sink = tokio::io::sink();
                tokio::select! {
                    _gone = tokio::io::copy(client, &mut sink) => {}
                    _ = healed.changed() => {}
                }
            }
            Some(Fault::Answer(status, body)) => {
                if !head.to_ascii_lowercase().contains("expect: 100-continue") {
                    let bytes = body_bytes(&head).saturating_sub(rest.len() as u64);
                    tokio::io::copy(&mut (&mut *client).take(bytes), &mut tokio::io::sink()).await?;
                }
                let answer = format!(
                    "HTTP/1.1 {status} A Fault\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n{body}",
                    body.len()
                );
                client.write_all(answer.as_bytes()).await?;
                client.shutdown().await?;
            }
            Some(Fault::Wait) => {
                // Whoever heals has sent it, or is gone.
                let _either = healed.changed().await;
                self.forward(client, &head, &rest, u64::MAX).await?;
            }
            Some(Fault::Cut(bytes)) => self.forward(client, &head, &rest, bytes).await?,
            None => self.forward(client, &head, &rest, u64::MAX).await?,
        }
        Ok(())
    }

    async fn forward(&self, client: &mut TcpStream, head: &str, rest: &[u8], bytes: u64) -> std::io::Result<()> {
        let mut server = TcpStream::connect(self.upstream).await?;
        let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        server.write_all(head.as_bytes()).await?;
        server.write_all(rest).await?;
        let (mut from_client, mut to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        let mut answer = from_server.take(bytes);
        tokio::select! {
            sent = tokio::io::copy(&mut from_client, &mut to_server) => sent.map(drop),
            answered = tokio::io::copy(&mut answer, &mut to_client) => answered.map(drop),
        }
    }
}

/// A request's head, and what came with it.
async fn head(client: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn body_bytes(head: &str) -> u64 {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    let length = lines.find(|(name, _value)| name.eq_ignore_ascii_case("content-length"));
    length.and_then(|(_name, value)| value.trim().parse().ok()).unwrap_or(0)
}
