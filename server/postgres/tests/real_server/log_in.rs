//! Passwords, certificates and encryption.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use secrecy::SecretString;
use tempfile::TempDir;
use tidegate_postgres::{ChannelBinding, ConnectConfig, ConnectError, ReplicationConnection, Session, TlsMode};

use crate::launcher::Server;

#[tokio::test]
async fn passwords_are_proved_by_scram_and_md5() {
    let server = Server::start(&[]);
    server.sql("CREATE ROLE s LOGIN REPLICATION PASSWORD 'sëcret'").await;
    server.sql("SET password_encryption = 'md5'; CREATE ROLE m LOGIN REPLICATION PASSWORD 'secret'").await;
    server.sql("CREATE ROLE p LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE n LOGIN PASSWORD 'secret'").await;
    server.allow(
        "local all postgres trust\nhost all s,n all scram-sha-256\nhost all m all md5\nhost all p all password\n",
    );
    let config = |user: &str, password: &str| ConnectConfig {
        host: "127.0.0.1".to_owned(),
        user: user.to_owned(),
        password: Some(SecretString::from(password)),
        ..server.config()
    };
    for (user, password) in [("s", "sëcret"), ("m", "secret"), ("p", "secret")] {
        ReplicationConnection::connect(&config(user, password)).await.expect(user);
        Session::connect(&config(user, password)).await.expect(user);
        let wrong = ReplicationConnection::connect(&config(user, "wrong")).await.expect_err(user);
        assert!(matches!(wrong, ConnectError::Authentication { .. }), "{wrong:?}");
        let wrong = Session::connect(&config(user, "wrong")).await.expect_err(user);
        assert!(matches!(wrong, ConnectError::Authentication { .. }), "{wrong:?}");
        let none = ConnectConfig { password: None, ..config(user, "") };
        let missing = ReplicationConnection::connect(&none).await.expect_err(user);
        assert!(matches!(missing, ConnectError::PasswordMissing { .. }), "{missing:?}");
        let missing = Session::connect(&none).await.expect_err(user);
        assert!(matches!(missing, ConnectError::PasswordMissing { .. }), "{missing:?}");
    }
    let nobody = ReplicationConnection::connect(&config("n", "secret")).await;
    let forbidden = nobody.expect_err("n may not replicate");
    assert!(matches!(forbidden, ConnectError::ReplicationForbidden { .. }), "{forbidden:?}");
    let required = ConnectConfig { tls: TlsMode::Require, ..config("s", "sëcret") };
    let no_tls = Session::connect(&required).await.expect_err("the server has no TLS");
    assert!(matches!(no_tls, ConnectError::TlsNotOffered { .. }), "{no_tls:?}");
}

/// An authority and what it signs, in files.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().expect("a key");
        let dir = tempfile::tempdir().expect("a directory");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("root.pem"), certificate.pem()).expect("writing the certificate");
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// Certificate and key in PEM.
    fn sign(&self, common_name: &str, host_names: &[&str]) -> (String, String) {
        let names: Vec<String> = host_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// The same, as files.
    fn sign_to_files(&self, common_name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign(common_name, &[]);
        let write = |path: &Path, content: String| std::fs::write(path, content).expect("writing a file");
        let paths = (self.dir.path().join("client.pem"), self.dir.path().join("client.key"));
        write(&paths.0, certificate);
        write(&paths.1, key);
        paths
    }
}

/// A server with TLS for `localhost`, which takes passwords and certificates.
async fn server_with_tls(authority: &Authority) -> Server {
    let server = Server::start(&[]);
    let (certificate, key) = authority.sign("server", &["localhost"]);
    server.write_private("server.crt", &certificate);
    server.write_private("server.key", &key);
    server.write_private("root.crt", &std::fs::read_to_string(authority.root()).expect("the root certificate"));
    server.sql("CREATE ROLE s LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE c LOGIN REPLICATION").await;
    server.sql("ALTER SYSTEM SET ssl_ca_file = 'root.crt'").await;
    server.sql("ALTER SYSTEM SET ssl = on").await;
    server.allow("local all postgres trust\nhostssl all c all cert\nhostssl all s all scram-sha-256\n");
    server
}

/// Both kinds of connection, which must agree.
async fn connects(config: &ConnectConfig) -> Result<(), ConnectError> {
    let replication = ReplicationConnection::connect(config).await.map(drop);
    let session = Session::connect(config).await;
    assert_eq!(replication.is_ok(), session.is_ok(), "{replication:?} {session:?}");
    if let Ok(session) = session {
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let row = session.client().query_one(sql, &[]).await.expect("an answer");
        assert!(row.get::<_, bool>(0), "the session is encrypted");
    }
    replication
}

#[tokio::test]
async fn each_sslmode_verifies_as_much_as_it_promises() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = server_with_tls(&authority).await;
    let config = |tls: TlsMode, host: &str, root: Option<&Authority>| ConnectConfig {
        host: host.to_owned(),
        user: "s".to_owned(),
        password: Some(SecretString::from("secret")),
        tls,
        root_certificate: root.map(Authority::root),
        ..server.config()
    };
    let plain = connects(&config(TlsMode::Disable, "localhost", None)).await.expect_err("only hostssl is allowed");
    assert!(matches!(plain, ConnectError::Authentication { .. }), "{plain:?}");
    connects(&config(TlsMode::Prefer, "127.0.0.1", None)).await.expect("prefer");
    connects(&config(TlsMode::Require, "127.0.0.1", None)).await.expect("require");
    connects(&config(TlsMode::Require, "127.0.0.1", Some(&authority))).await.expect("require with a root");
    connects(&config(TlsMode::VerifyCa, "127.0.0.1", Some(&authority))).await.expect("verify-ca");
    connects(&config(TlsMode::VerifyFull, "localhost", Some(&authority))).await.expect("verify-full");
    for (mode, host, root) in [
        (TlsMode::Require, "localhost", &stranger),
        (TlsMode::VerifyCa, "localhost", &stranger),
        (TlsMode::VerifyFull, "localhost", &stranger),
        (TlsMode::VerifyFull, "127.0.0.1", &authority),
    ] {
        let refused = connects(&config(mode, host, Some(root))).await.expect_err("an impostor");
        assert!(matches!(refused, ConnectError::Tls { .. }), "{mode:?} {host}: {refused:?}");
    }
}

#[tokio::test]
async fn a_log_in_is_bound_to_the_tls_connection_where_that_is_required() {
    let authority = Authority::new();
    let server = server_with_tls(&authority).await;
    server.sql("SET password_encryption = 'md5'; CREATE ROLE m LOGIN REPLICATION PASSWORD 'secret'").await;
    server.sql("CREATE ROLE t LOGIN REPLICATION").await;
    server.allow(
        "local all postgres trust\nhost all s all scram-sha-256\nhostssl all m all md5\nhostssl all t all trust\n",
    );
    let config = |user: &str, tls: TlsMode, channel_binding: ChannelBinding| ConnectConfig {
        host: "localhost".to_owned(),
        user: user.to_owned(),
        password: Some(SecretString::from("secret")),
        tls,
        channel_binding,
        ..server.config()
    };
    for binding in [ChannelBinding::Disable, ChannelBinding::Prefer, ChannelBinding::Require] {
        connects(&config("s", TlsMode::Require, binding)).await.expect("over TLS");
    }
    let required = |user, tls| config(user, tls, ChannelBinding::Require);
    // Without TLS, with another kind of log-in, and with none.
    let unbound = [required("s", TlsMode::Disable), required("m", TlsMode::Require), required("t", TlsMode::Require)];
    for config in unbound {
        let refused = connects(&config).await.expect_err("nothing to bind to");
        assert!(matches!(refused, ConnectError::ChannelBinding { .. }), "{}: {refused:?}", config.user);
        let session = Session::connect(&config).await.expect_err("nothing to bind to");
        assert!(matches!(session, ConnectError::ChannelBinding { .. }), "{}: {session:?}", config.user);
    }
    let plain = config("s", TlsMode::Disable, ChannelBinding::Prefer);
    Session::connect(&plain).await.expect("without TLS, preferring is enough");
    ReplicationConnection::connect(&plain).await.expect("without TLS, preferring is enough");
}

#[tokio::test]
async fn a_certificate_logs_in_and_the_stream_runs_over_tls() {
    let authority = Authority::new();
    let server = server_with_tls(&authority).await;
    let (certificate, key) = authority.sign_to_files("c");
    let config = ConnectConfig {
        host: "localhost".to_owned(),
        user: "c".to_owned(),
        tls: TlsMode::VerifyFull,
        root_certificate: Some(authority.root()),
        client_certificate: Some(certificate),
        client_key: Some(key),
        ..server.config()
    };
    connects(&config).await.expect("a log-in by certificate");
    let without = ConnectConfig { client_certificate: None, client_key: None, ..config.clone() };
    connects(&without).await.expect_err("no certificate, no log-in");
    crate::streams::check_stream(&server, &config).await;
}
