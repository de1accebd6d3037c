//! Who is at the other end of a call's connection: its address, and the certificate that it has shown.

use std::net::IpAddr;
use std::sync::Arc;

use http::Extensions;
use rustls::pki_types::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

/// As the listener knows it; behind a proxy this is the proxy.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    pub(super) address: Option<IpAddr>,
    /// The client's own first. Checked against the listener's authority.
    certificates: Option<Arc<Vec<CertificateDer<'static>>>>,
}

impl Peer {
    pub(super) fn of(extensions: &Extensions) -> Self {
        if let Some(tls) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            let address = tls.get_ref().remote_addr().map(|address| address.ip());
            return Self { address, certificates: tls.peer_certs() };
        }
        let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        Self { address: address.map(|address| address.ip()), certificates: None }
    }

    /// In DER.
    pub(super) fn certificate(&self) -> Option<&[u8]> {
        self.certificates.as_ref()?.first().map(AsRef::as_ref)
    }
}
