//! PostgreSQL's regular expressions (manual, section 9.7.3; `src/backend/regex`), as far as the crate `regex` matches the same:
//! the pattern is read here and written anew for it, character by character, and all else is refused with its place.
//!
//! Only whether there is a match is asked for, so that greed does not matter. The crate matches in linear time.

use std::fmt::Write;

/// What is refused, at which byte of the pattern, and what to do.
pub(super) type Refused = (usize, &'static str);

/// Bytes of a compiled pattern, and how many nodes of a condition it counts as.
const SIZES: [(usize, usize); 3] = [(16 * 1024, 50), (64 * 1024, 200), (256 * 1024, 800)];
/// PostgreSQL's `DUPMAX`.
const REPEATED_MAX: u32 = 255;
/// Parentheses within each other.
const DEPTH_MAX: usize = 50;

const CLASS: &str =
    "classes of characters follow the collation; write COLLATE \"C\" behind the operand, or a set such as [0-9]";

/// Compiles the pattern, and says how many nodes it counts as. `is_c`: classes and cases are those of ASCII, and known;
/// `fold`: case does not count.
pub(super) fn compile(pattern: &str, fold: bool, is_c: bool) -> Result<(regex::Regex, usize), Refused> {
    let mut translator = Translator { pattern, at: 0, fold, is_c, out: String::from("(?s)"), depth: 0 };
    translator.branches()?;
    if translator.at < pattern.len() {
        return translator.refuse("a parenthesis closes that was not opened; write \\)");
    }
    let built = |(bytes, nodes): &(usize, usize)| {
        let built = regex::RegexBuilder::new(&translator.out).size_limit(*bytes).dfa_size_limit(*bytes).build();
        built.ok().map(|compiled| (compiled, *nodes))
    };
    SIZES.iter().find_map(built).ok_or((0, "it is too large; write fewer repetitions"))
}

struct Translator<'p> {
    pattern: &'p str,
    at: usize,
    fold: bool,
    is_c: bool,
    out: String,
    depth: usize,
}

/// Inclusive ranges of characters.
type Set = Vec<(char, char)>;

impl Translator<'_> {
    fn refuse<T>(&self, what: &'static str) -> Result<T, Refused> {
        Err((self.at, what))
    }

    fn peek(&self) -> Option<char> {
        self.pattern[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.pattern[self.at..].starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Up to the end, or the parenthesis that closes.
    fn branches(&mut self) -> Result<(), Refused> {
        if self.take("***") || self.pattern[self.at..].starts_with("(?") && !self.pattern[self.at..].starts_with("(?:")
        {
            return self.refuse(
                "options within a pattern, and looking ahead and behind, are not supported; write ~* for any case",
            );
        }
        while let Some(char) = self.peek() {
            match char {
                ')' => return Ok(()),
                '|' => {
                    self.at += 1;
                    self.out.push('|');
                }
                _ => self.quantified()?,
            }
        }
        Ok(())
    }

    fn quantified(&mut self) -> Result<(), Refused> {
        if !self.atom()? {
            return match self.peek() {
                Some('*' | '+' | '?' | '{') => self.refuse("a place cannot be repeated; leave the repetition out"),
                _ => Ok(()),
            };
        }
        match self.peek() {
            Some(sign @ ('*' | '+' | '?')) => {
                self.at += 1;
                self.out.push(sign);
            }
            Some('{') => self.bounds()?,
            _ => return Ok(()),
        }
        // Greed does not change whether there is a match.
        self.take("?");
        match self.peek() {
            Some('*' | '+' | '?' | '{') => self.refuse("what is repeated is repeated again; use parentheses"),
            _ => Ok(()),
        }
    }

    /// `{m}`, `{m,}`, `{m,n}`
    fn bounds(&mut self) -> Result<(), Refused> {
        let body = self.pattern[self.at + 1..].split('}').next().unwrap_or_default();
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|&number| digits && number <= REPEATED_MAX)
        };
        let (low, high) = body.split_once(',').unwrap_or((body, body));
        let valid = match (number(low), number(high)) {
            (Some(low), Some(high)) => low <= high,
            (Some(_), None) => high.is_empty() && body.ends_with(','),
            (None, _) => false,
        };
        if !valid || !self.pattern[self.at + 1 + body.len()..].starts_with('}') {
            return self.refuse("such braces are not supported; write {2}, {2,} or {2,5}, up to 255, or \\{");
        }
        self.out.push_str(&format!("{{{body}}}"));
        self.at += body.len() + 2;
        Ok(())
    }

    /// False of what matches no character, but a place.
    fn atom(&mut self) -> Result<bool, Refused> {
        let start = self.at;
        let Some(char) = self.next() else { return Ok(false) };
        match char {
            '(' => self.group(start)?,
            '[' => self.bracket(start)?,
            '.' => self.out.push('.'),
            '^' => return self.place("\\A"),
            '$' => return self.place("\\z"),
            '\\' => return self.escape(start),
            '*' | '+' | '?' | '{' => {
                self.at = start;
                return self.refuse("there is nothing before this that could be repeated; write a backslash before it");
            }
            literal => self.set(vec![(literal, literal)], false),
        }
        Ok(true)
    }

    fn place(&mut self, place: &str) -> Result<bool, Refused> {
        self.out.push_str(place);
        Ok(false)
    }

    fn group(&mut self, start: usize) -> Result<(), Refused> {
        let plain = self.take("?:") || self.peek() != Some('?');
        self.depth += 1;
        if !plain || self.depth > DEPTH_MAX {
            self.at = start;
            return self
                .refuse("looking ahead and behind, options, and deep nesting are not supported; write (…) or (?:…)");
        }
        self.out.push_str("(?:");
        self.branches()?;
        if !self.take(")") {
            self.at = start;
            return self.refuse("this parenthesis is not closed; close it, or write \\(");
        }
        self.depth -= 1;
        self.out.push(')');
        Ok(())
    }

    /// What stands behind a backslash outside brackets.
    fn escape(&mut self, start: usize) -> Result<bool, Refused> {
        let rest = &self.pattern[self.at..];
        let word = |place| if self.is_c { Ok(place) } else { Err((start, CLASS)) };
        let place = match rest.chars().next() {
            Some('A') => "\\A",
            Some('Z') => "\\z",
            Some('m') => word("(?-u:\\b{start})")?,
            Some('M') => word("(?-u:\\b{end})")?,
            Some('y') => word("(?-u:\\b)")?,
            Some(class @ ('D' | 'W' | 'S')) => {
                self.at += 1;
                let set = self.class_of(class.to_ascii_lowercase(), start)?;
                self.set(set, true);
                return Ok(true);
            }
            _ => {
                let set = self.escaped(start)?;
                self.set(set, false);
                return Ok(true);
            }
        };
        self.at += 1;
        self.place(place)
    }

    /// A character or a class behind a backslash.
    fn escaped(&mut self, start: usize) -> Result<Set, Refused> {
        let Some(char) = self.next() else { return Err((start, "a backslash ends it; write \\\\")) };
        let one = |char| Ok(vec![(char, char)]);
        match char {
            'n' => one('\n'),
            't' => one('\t'),
            'r' => one('\r'),
            'f' => one('\x0c'),
            'v' => one('\x0b'),
            'd' | 'w' | 's' => self.class_of(char, start),
            other if !other.is_alphanumeric() && other != '_' => one(other),
            _ => Err((start, "such an escape is not supported; write the character itself")),
        }
    }

    fn class_of(&self, letter: char, start: usize) -> Result<Set, Refused> {
        self.class(
            match letter {
                'd' => "digit",
                'w' => "word",
                _ => "space",
            },
            start,
        )
    }

    /// As in C, where letters are ASCII's.
    fn class(&self, name: &str, start: usize) -> Result<Set, Refused> {
        if !self.is_c {
            return Err((start, CLASS));
        }
        let ranges: &[(char, char)] = match name {
            "digit" => &[('0', '9')],
            "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "space" => &[('\t', '\r'), (' ', ' ')],
            "alpha" => &[('A', 'Z'), ('a', 'z')],
            "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
            "upper" => &[('A', 'Z')],
            "lower" => &[('a', 'z')],
            "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
            "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            _ => return Err((start, "such a class is not supported; write the characters themselves")),
        };
        Ok(ranges.to_vec())
    }

    /// `[…]`, behind its bracket.
    fn bracket(&mut self, start: usize) -> Result<(), Refused> {
        let unclosed = (start, "this bracket is not closed; write \\[");
        let negated = self.take("^");
        let mut set = Set::new();
        let mut first = true;
        loop {
            let at = self.at;
            if !first && self.take("]") {
                break;
            }
            first = false;
            if self.take("[:") {
                let name = self.pattern[self.at..].split(":]").next().unwrap_or_default();
                self.at += name.len() + 2;
                set.extend(self.class(name, at)?);
                continue;
            }
            let low = self.member(at, unclosed)?;
            let is_range = self.pattern[self.at..].starts_with('-') && !self.pattern[self.at..].starts_with("-]");
            if !is_range {
                set.extend(low);
                continue;
            }
            self.at += 1;
            let high = self.member(at, unclosed)?;
            match (low.as_slice(), high.as_slice()) {
                (&[(low, same)], &[(high, other)]) if low == same && high == other && low <= high => {
                    set.push((low, high))
                }
                _ => return Err((at, "such a range is not supported; write one such as a-z")),
            }
        }
        self.set(set, negated);
        Ok(())
    }

    fn member(&mut self, at: usize, unclosed: Refused) -> Result<Set, Refused> {
        match self.next().ok_or(unclosed)? {
            '\\' => self.escaped(at),
            '[' if matches!(self.peek(), Some('.' | '=' | ':')) => {
                Err((at, "such a bracket is not supported; write \\["))
            }
            char => Ok(vec![(char, char)]),
        }
    }

    /// Writes the set for the crate, with both cases of ASCII's letters where case does not count.
    fn set(&mut self, mut set: Set, negated: bool) {
        if self.fold {
            for (from, to, shift) in [('a', 'z', -32_i32), ('A', 'Z', 32)] {
                let within =
                    set.iter().map(|&(low, high)| (low.max(from), high.min(to))).filter(|(low, high)| low <= high);
                let other = |char: char| (u32::from(char).cast_signed() + shift).cast_unsigned() as u8 as char;
                let added: Set = within.map(|(low, high)| (other(low), other(high))).collect();
                set.extend(added);
            }
        }
        self.out.push_str(if negated { "[^" } else { "[" });
        for (low, high) in set {
            // A String takes whatever is written to it.
            write!(self.out, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(low), u32::from(high)).unwrap_or_default();
        }
        self.out.push(']');
    }
}

/// The regular expression that `SIMILAR TO` stands for (`similar_escape_internal`).
pub(super) fn of_similar(pattern: &str, escape: Option<char>) -> Result<String, Refused> {
    let mut out = String::from("^(?:");
    let mut in_bracket = false;
    let mut chars = pattern.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            char if Some(char) == escape => match chars.next() {
                Some((_, escaped)) if !escaped.is_alphanumeric() && escaped != '"' && escaped != '_' => {
                    out.push('\\');
                    out.push(escaped);
                }
                Some((_, '_')) => out.push('_'),
                _ => return Err((at, "such an escape is not supported; write the character itself")),
            },
            '[' | '\\' | '^' if in_bracket && !out.ends_with('[') => {
                return Err((
                    at,
                    "this within brackets is not supported; write the characters on their own, with | between them",
                ));
            }
            char if in_bracket => {
                in_bracket = char != ']';
                out.push(char);
            }
            '[' => {
                in_bracket = true;
                out.push(char);
            }
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '(' => out.push_str("(?:"),
            '\\' | '.' | '^' | '$' => {
                out.push('\\');
                out.push(char);
            }
            other => out.push(other),
        }
    }
    out.push_str(")$");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_postgresql() {
        for (text, pattern, fold, matched) in [
            ("abc", "^a.c$", false, true),
            ("a\nc", "^a.c$", false, true),
            ("abc\n", "c$", false, false),
            ("ABC", "b", true, true),
            ("É", "é", true, false),
            ("a-b", "[a-]-", false, true),
            ("]", "[]]", false, true),
            ("b", "[^a-c]", true, false),
            ("aab", "^(?:a{2}|b)+?$", false, true),
            ("a1", r"^\w\d$", false, true),
            ("x", "a|", false, true),
            ("foo bar", r"\mbar\M", false, true),
        ] {
            let (compiled, _) = compile(pattern, fold, true).expect("supported");
            assert_eq!(compiled.is_match(text), matched, "{text} ~ {pattern}");
        }
        for pattern in [
            "(", ")", "a**", "*a", r"\1", "(?=a)", "(?i)a", "***=a", "[a", "[z-a]", "a{300}", "a{,2}", "^*", "[[.a.]]",
            "\\",
        ] {
            assert!(compile(pattern, false, true).is_err(), "{pattern}");
        }
        assert!(compile(r"\w", false, false).is_err());
    }

    #[test]
    fn what_grows_is_refused_and_what_backtracks_elsewhere_is_linear() {
        assert!(compile("((a{200}){200}){200}", false, true).is_err());
        let (compiled, _) = compile("^(a*)*(a|a)*b$", false, true).expect("supported");
        assert!(!compiled.is_match(&"a".repeat(100_000)));
    }

    #[test]
    fn similar_patterns_become_regular_expressions() {
        assert_eq!(of_similar("a%(b|c)_.", Some('\\')).as_deref(), Ok("^(?:a.*(?:b|c).\\.)$"));
        assert_eq!(of_similar("[ab]#%", Some('#')).as_deref(), Ok("^(?:[ab]\\%)$"));
    }
}
