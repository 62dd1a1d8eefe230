//! Reads connection strings: `postgres://` URLs and libpq's `key=value` form (PostgreSQL manual, section 34.1.1).
//!
//! Invariant: an unknown or unusable parameter is an error, never ignored; no error shows a value that may be a password.
//! It deliberately reads neither environment variables nor password files: configuration has one place.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use secrecy::SecretString;

use crate::{ChannelBinding, ConnectConfig, ConnectError, TlsMode};

impl ConnectConfig {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `host=… port=… …`.
    ///
    /// Parameters: host, port, dbname, user, password, sslmode, sslrootcert, sslcert, sslkey, application_name,
    /// channel_binding, connect_timeout (seconds). Missing ones are as in libpq: localhost, 5432, the user's name as the database,
    /// sslmode and channel_binding prefer.
    ///
    /// # Errors
    /// [`ConnectError::Config`] with what is wrong and what would be right.
    pub fn from_url(url: &str) -> Result<Self, ConnectError> {
        let url = url.trim();
        let mut settings = Settings { config: ConnectConfig::default(), database_given: false };
        match url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) {
            Some(rest) => settings.read_url(rest)?,
            None => settings.read_pairs(url)?,
        }
        if !settings.database_given {
            settings.config.database.clone_from(&settings.config.user);
        }
        Ok(settings.config)
    }

    /// Reads the same from a file, which is read again at each connection.
    ///
    /// # Errors
    /// [`ConnectError::UrlFile`], and [`ConnectError::Config`].
    pub fn from_url_file(path: &Path) -> Result<Self, ConnectError> {
        Self::of_file(path, fs::read_to_string(path))
    }

    /// What holds now: with a file, what it says now.
    ///
    /// # Errors
    /// [`ConnectError::UrlFile`]: it cannot be read, or it has come to name another database, whose changes would be taken
    /// for this one's.
    pub(crate) async fn current(&self) -> Result<Cow<'_, Self>, ConnectError> {
        let Some(path) = &self.url_file else { return Ok(Cow::Borrowed(self)) };
        let unusable = |problem: String| ConnectError::UrlFile { path: path.clone(), problem };
        let text = tokio::fs::read_to_string(path).await;
        let read = Self::of_file(path, text).map_err(|error| match error {
            ConnectError::Config { problem } => unusable(problem),
            error => error,
        })?;
        if read.database != self.database {
            let (before, now) = (&self.database, &read.database);
            let problem =
                format!("it names database '{now}' instead of '{before}'; if that is meant, restart the server");
            return Err(unusable(problem));
        }
        let application_name = self.application_name.clone();
        Ok(Cow::Owned(ConnectConfig { application_name, ..read }))
    }

    fn of_file(path: &Path, text: io::Result<String>) -> Result<Self, ConnectError> {
        match text {
            Ok(text) => Ok(ConnectConfig { url_file: Some(path.to_owned()), ..Self::from_url(&text)? }),
            Err(error) => Err(ConnectError::UrlFile { path: path.to_owned(), problem: error.to_string() }),
        }
    }
}

impl FromStr for ConnectConfig {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        Self::from_url(text)
    }
}

fn refused(problem: impl Into<String>) -> ConnectError {
    ConnectError::Config { problem: problem.into() }
}

struct Settings {
    config: ConnectConfig,
    database_given: bool,
}

impl Settings {
    fn read_url(&mut self, rest: &str) -> Result<(), ConnectError> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        let (host, port) = host_and_port(place)?;
        let parts = [("user", Some(user)), ("password", password), ("host", Some(host)), ("port", port)];
        for (key, value) in parts.into_iter().chain([("dbname", Some(database))]) {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                self.set(key, &percent_decoded(key, value)?)?;
            }
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| refused(format!("parameter '{pair}' has no value")))?;
            self.set(&percent_decoded("name", key)?, &percent_decoded(key, value)?)?;
        }
        Ok(())
    }

    fn read_pairs(&mut self, text: &str) -> Result<(), ConnectError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').ok_or_else(|| {
                refused("expected postgres://user@host:port/database or 'host=… dbname=… user=…' pairs")
            })?;
            let (value, after) = pair_value(after.trim_start())
                .ok_or_else(|| refused(format!("the value of '{}' lacks its closing quote", key.trim())))?;
            self.set(key.trim(), &value)?;
            rest = after.trim_start();
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ConnectError> {
        let config = &mut self.config;
        match key {
            "host" | "hostaddr" if value.contains(',') => {
                return Err(refused("several hosts are given; name the primary alone"));
            }
            "host" | "hostaddr" => value.clone_into(&mut config.host),
            "port" => {
                config.port = value.parse().map_err(|_| refused(format!("port '{value}' is not 1 to 65535")))?;
            }
            "dbname" => {
                value.clone_into(&mut config.database);
                self.database_given = true;
            }
            "user" => value.clone_into(&mut config.user),
            "password" => config.password = Some(SecretString::from(value)),
            "sslmode" => config.tls = tls_mode(value)?,
            "channel_binding" => config.channel_binding = channel_binding(value)?,
            "sslrootcert" => config.root_certificate = Some(PathBuf::from(value)),
            "sslcert" => config.client_certificate = Some(PathBuf::from(value)),
            "sslkey" => config.client_key = Some(PathBuf::from(value)),
            "application_name" => value.clone_into(&mut config.application_name),
            "connect_timeout" => {
                let seconds = value.parse().map_err(|_| refused("connect_timeout is not a number of seconds"))?;
                config.connect_timeout = Duration::from_secs(seconds);
            }
            _ => {
                return Err(refused(format!(
                    "unknown parameter '{key}'; known are host, port, dbname, user, password, sslmode, sslrootcert, \
                     sslcert, sslkey, channel_binding, application_name, connect_timeout"
                )));
            }
        }
        Ok(())
    }
}

fn tls_mode(value: &str) -> Result<TlsMode, ConnectError> {
    match value {
        "disable" => Ok(TlsMode::Disable),
        "prefer" => Ok(TlsMode::Prefer),
        "require" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" => Ok(TlsMode::VerifyFull),
        _ => Err(refused(format!(
            "sslmode '{value}' is not known; use disable, prefer, require, verify-ca or verify-full"
        ))),
    }
}

fn channel_binding(value: &str) -> Result<ChannelBinding, ConnectError> {
    match value {
        "disable" => Ok(ChannelBinding::Disable),
        "prefer" => Ok(ChannelBinding::Prefer),
        "require" => Ok(ChannelBinding::Require),
        _ => Err(refused(format!("channel_binding '{value}' is not known; use disable, prefer or require"))),
    }
}

/// Splits `host`, `host:port`, `[::1]:port`; either may be empty.
fn host_and_port(place: &str) -> Result<(&str, Option<&str>), ConnectError> {
    if let Some(bracketed) = place.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or_else(|| refused("the host's '[' has no ']'"))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(refused("between the host's ']' and the port, a ':' is missing")),
        };
    }
    match place.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(refused("write an IPv6 address in brackets: [::1]:5432")),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((place, None)),
    }
}

fn percent_decoded(key: &str, text: &str) -> Result<String, ConnectError> {
    let malformed = || refused(format!("the {key} holds a malformed %-escape; write a plain '%' as %25"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = (digit().ok_or_else(malformed)?, digit().ok_or_else(malformed)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| malformed())?);
    }
    match String::from_utf8(bytes) {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded),
        Ok(_) | Err(_) => Err(malformed()),
    }
}

/// A plain or single-quoted value with backslash escapes, and what follows it.
fn pair_value(text: &str) -> Option<(String, &str)> {
    let (quoted, body) = text.strip_prefix('\'').map_or((false, text), |body| (true, body));
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, character)) = chars.next() {
        match character {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, &body[at + 1..])),
            _ if !quoted && character.is_whitespace() => return Some((value, &body[at..])),
            _ => value.push(character),
        }
    }
    if quoted { None } else { Some((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    fn read(url: &str) -> ConnectConfig {
        ConnectConfig::from_url(url).expect("a valid connection string")
    }

    #[test]
    fn a_url_is_read() {
        let config = read(
            "postgresql://app%40x:p%3Aw@db.example:6543/shop?sslmode=verify-full&sslrootcert=%2Fca.pem&connect_timeout=3",
        );
        assert_eq!((config.user.as_str(), config.host.as_str(), config.port), ("app@x", "db.example", 6543));
        assert_eq!(config.password.map(|p| p.expose_secret().to_owned()).as_deref(), Some("p:w"));
        assert_eq!((config.database.as_str(), config.tls), ("shop", TlsMode::VerifyFull));
        assert_eq!(config.root_certificate, Some(PathBuf::from("/ca.pem")));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
    }

    #[test]
    fn pairs_are_read() {
        let config = read(r"host=/run/pg port = 5433 user='my \'user' password='a b\\' sslmode=disable");
        assert_eq!((config.host.as_str(), config.port, config.user.as_str()), ("/run/pg", 5433, "my 'user"));
        assert_eq!(config.password.as_ref().map(ExposeSecret::expose_secret), Some(r"a b\"));
        assert_eq!((config.database.as_str(), config.tls), ("my 'user", TlsMode::Disable));
        assert!(config.is_unix_socket());
    }

    #[test]
    fn missing_parts_are_as_in_libpq() {
        let config = read("postgres://alice@/");
        assert_eq!((config.host.as_str(), config.port), ("localhost", 5432));
        assert_eq!((config.database.as_str(), config.tls), ("alice", TlsMode::Prefer));
        assert_eq!(read("postgres://u@[::1]:7/d").host, "::1");
        assert_eq!(read("postgres:///d?host=/run/pg").host, "/run/pg");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for url in [
            "postgres://u@h:x/d",
            "postgres://u@h,g/d",
            "postgres://u@::1/d",
            "postgres://u@[::1/d",
            "postgres://u@h/d?sslmode=allow",
            "postgres://u@h/d?target_session_attrs=any",
            "postgres://u%@h/d",
            "postgres://u@h/d?x",
            "host='x",
            "mysql",
        ] {
            assert!(matches!(ConnectConfig::from_url(url), Err(ConnectError::Config { .. })), "{url}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        assert!(!format!("{:?}", read("postgres://u:hunter2@h/d")).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_nor_shows_the_password(text in "\\PC{0,60}") {
            for url in [text.clone(), format!("postgres://{text}"), format!("postgres://u:sEcReT@{text}")] {
                if let Err(error) = ConnectConfig::from_url(&url) {
                    prop_assert!(!error.to_string().contains("sEcReT"));
                }
            }
        }
    }
}
