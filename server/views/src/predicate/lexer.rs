//! The words of a condition, as PostgreSQL's scanner reads them with `standard_conforming_strings` on.
//!
//! Invariant: what is read here is read alike by PostgreSQL 14 to 18 (`src/backend/parser/scan.l`), whatever its settings.
//! Where versions or settings differ (`\\'` in `E''`, `U&''`, hexadecimal numbers, `1_000`), it is refused.

use std::borrow::Cow;

use super::refusal::{Reason, Refusal};

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A word without quotes, in lower case.
    Word(Cow<'a, str>),
    /// An identifier in quotes.
    Quoted(String),
    /// A string in quotes.
    Text(String),
    /// Digits, perhaps with a point and an exponent.
    Number(&'a str),
    /// `$n`
    Parameter(usize),
    /// An operator or a mark.
    Symbol(&'a str),
    /// Behind the last.
    End,
}

/// A token and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Lexeme<'a> {
    pub(super) at: usize,
    pub(super) token: Token<'a>,
}

/// PostgreSQL cuts longer names off (`NAMEDATALEN`).
const NAME_BYTES_MAX: usize = 63;

const OPERATOR: &[u8] = b"~!@#^&|`?+-*/%<>=";

/// All tokens, the end included.
pub(super) fn lexemes(text: &str) -> Result<Vec<Lexeme<'_>>, Refusal> {
    let mut lexer = Lexer { text, at: 0 };
    let mut found = Vec::new();
    loop {
        lexer.skip_space()?;
        let at = lexer.at;
        let token = lexer.token()?;
        let ended = token == Token::End;
        found.push(Lexeme { at, token });
        if ended {
            return Ok(found);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn refuse<T>(&self, at: usize, what: &str, instead: &'static str) -> Result<T, Refusal> {
        Err(Refusal::at(at, Reason::Unsupported { what: what.to_owned(), instead }))
    }

    fn take_while(&mut self, is_part: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn skip_space(&mut self) -> Result<(), Refusal> {
        loop {
            self.take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c));
            if self.rest().starts_with("--") {
                self.take_while(|byte| !matches!(byte, b'\n' | b'\r'));
            } else if self.rest().starts_with("/*") {
                self.skip_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Comments nest.
    fn skip_comment(&mut self) -> Result<(), Refusal> {
        let (start, mut open) = (self.at, 0_usize);
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                open += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                open -= 1;
                self.at += 2;
                if open == 0 {
                    return Ok(());
                }
            } else {
                let Some(next) = rest.chars().next() else {
                    return Err(Refusal::at(start, Reason::Unclosed { what: "comment" }));
                };
                self.at += next.len_utf8();
            }
        }
    }

    fn token(&mut self) -> Result<Token<'a>, Refusal> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let Some(&first) = bytes.first() else { return Ok(Token::End) };
        match first {
            b'\'' => Ok(Token::Text(self.quoted('\'', "string")?)),
            b'"' => self.identifier(),
            b'0'..=b'9' => self.number(),
            b'.' if bytes.get(1).is_some_and(u8::is_ascii_digit) => self.number(),
            b'$' if bytes.get(1).is_some_and(u8::is_ascii_digit) => self.parameter(),
            b'$' => self.dollar_quoted(),
            b'(' | b')' | b'[' | b']' | b',' | b'.' | b';' => Ok(self.symbol(1)),
            b':' => Ok(self.symbol(if rest.starts_with("::") { 2 } else { 1 })),
            byte if OPERATOR.contains(&byte) => Ok(self.operator()),
            byte if is_word_start(byte) => self.word(),
            _ => {
                let found = rest.chars().next().map(|char| char.escape_debug().to_string()).unwrap_or_default();
                Err(Refusal::at(self.at, Reason::Unexpected { found, expected: "a condition" }))
            }
        }
    }

    fn symbol(&mut self, len: usize) -> Token<'a> {
        let symbol = &self.rest()[..len];
        self.at += len;
        Token::Symbol(symbol)
    }

    /// As long as it goes, up to a comment; without `+` or `-` at its end unless it holds a character that standard SQL's
    /// operators do not have.
    fn operator(&mut self) -> Token<'a> {
        let rest = self.rest();
        let mut len = rest.bytes().position(|byte| !OPERATOR.contains(&byte)).unwrap_or(rest.len());
        for comment in ["--", "/*"] {
            len = rest[..len].find(comment).unwrap_or(len);
        }
        let special = |text: &str| text.bytes().any(|byte| b"~!@#^&|`?%".contains(&byte));
        while len > 1 && matches!(rest.as_bytes()[len - 1], b'+' | b'-') && !special(&rest[..len]) {
            len -= 1;
        }
        self.symbol(len)
    }

    fn word(&mut self) -> Result<Token<'a>, Refusal> {
        let at = self.at;
        let word = self.take_while(|byte| is_word_start(byte) || byte.is_ascii_digit() || byte == b'$');
        let next = self.rest();
        if next.starts_with('\'') && matches!(word, "e" | "E") {
            return Ok(Token::Text(super::escape::read(self.rest(), at).map(|(text, len)| {
                self.at += len;
                text
            })?));
        }
        if next.starts_with('\'') && matches!(word, "b" | "B" | "x" | "X" | "n" | "N") {
            return self.refuse(
                at,
                "a string with this letter before it",
                "write the string as '…', with '' for a quote",
            );
        }
        if matches!(word, "u" | "U") && (next.starts_with("&'") || next.starts_with("&\"")) {
            return self.refuse(at, "U& with escapes", "write the characters themselves");
        }
        check_name(word, at)?;
        Ok(Token::Word(match word.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(word.to_ascii_lowercase()),
            false => Cow::Borrowed(word),
        }))
    }

    fn identifier(&mut self) -> Result<Token<'a>, Refusal> {
        let at = self.at;
        let name = self.quoted('"', "identifier")?;
        if name.is_empty() {
            return Err(Refusal::at(at, Reason::Unexpected { found: "\"\"".to_owned(), expected: "a name" }));
        }
        check_name(&name, at)?;
        Ok(Token::Quoted(name))
    }

    /// What stands between quotes; a doubled quote is one.
    fn quoted(&mut self, quote: char, what: &'static str) -> Result<String, Refusal> {
        let start = self.at;
        let mut value = String::new();
        self.at += 1;
        loop {
            let rest = self.rest();
            let Some(end) = rest.find(quote) else { return Err(Refusal::at(start, Reason::Unclosed { what })) };
            value.push_str(&rest[..end]);
            self.at += end + 1;
            if !self.rest().starts_with(quote) {
                break;
            }
            value.push(quote);
            self.at += 1;
        }
        if value.contains('\0') {
            return self.refuse(start, "the character with the code zero", "PostgreSQL's text never holds it");
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Token<'a>, Refusal> {
        let (start, text) = (self.at, self.text);
        self.take_while(|byte| byte.is_ascii_digit());
        if self.rest().starts_with('.') {
            self.at += 1;
            self.take_while(|byte| byte.is_ascii_digit());
        }
        if self.rest().starts_with(['e', 'E']) {
            self.at += 1;
            if self.rest().starts_with(['+', '-']) {
                self.at += 1;
            }
            if self.take_while(|byte| byte.is_ascii_digit()).is_empty() {
                return self.refuse(start, "a number with an exponent without digits", "write it as 1e6");
            }
        }
        if self.rest().bytes().next().is_some_and(|byte| is_word_start(byte) || byte == b'.') {
            return self.refuse(start, "such a number", "write decimal digits, and a space behind them");
        }
        Ok(Token::Number(&text[start..self.at]))
    }

    fn parameter(&mut self) -> Result<Token<'a>, Refusal> {
        let at = self.at;
        self.at += 1;
        let digits = self.take_while(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|&number| (1..=65_535).contains(&number));
        match number {
            Some(number) if !self.rest().bytes().next().is_some_and(is_word_start) => Ok(Token::Parameter(number)),
            _ => self.refuse(at, "such a $", "write parameters as $1 and strings as '…'"),
        }
    }

    /// `$$…$$` or `$tag$…$tag$`
    fn dollar_quoted(&mut self) -> Result<Token<'a>, Refusal> {
        let (at, rest) = (self.at, self.rest());
        let tag_len = rest[1..].find('$').map_or(0, |len| len + 2);
        let tag = &rest[..tag_len];
        let name = tag.trim_matches('$').as_bytes();
        let is_name = name.iter().all(|&byte| is_word_start(byte) || byte.is_ascii_digit());
        if tag.is_empty() || !is_name || name.first().is_some_and(u8::is_ascii_digit) {
            return self.refuse(at, "such a $", "write parameters as $1 and strings as '…'");
        }
        let body = &rest[tag_len..];
        let Some(len) = body.find(tag) else { return Err(Refusal::at(at, Reason::Unclosed { what: "string" })) };
        self.at += tag_len + len + tag_len;
        if body[..len].contains('\0') {
            return self.refuse(at, "the character with the code zero", "PostgreSQL's text never holds it");
        }
        Ok(Token::Text(body[..len].to_owned()))
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn check_name(name: &str, at: usize) -> Result<(), Refusal> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let what = format!("a name of {} bytes", name.len());
    Err(Refusal::at(at, Reason::Unsupported { what, instead: "PostgreSQL's names have 63 bytes or fewer" }))
}
