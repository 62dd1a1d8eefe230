//! LIKE, as `src/backend/utils/adt/like_match.c` has it, by bytes but for `_`.
//!
//! PostgreSQL's function calls itself at every `%`. Only the last `%` is ever tried further on, so a place to go back to is
//! enough here, and no pattern overflows the stack.

use super::evaluate::EvaluationError;

/// Does the text match the pattern, whose escapes are backslashes? A pattern that ends with one fails where PostgreSQL
/// notices it: when the text has come so far.
pub(super) fn matches(text: &str, pattern: &str) -> Result<bool, EvaluationError> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    // The pattern behind the last `%`, and where in the text it was tried.
    let mut last: Option<(usize, usize)> = None;
    loop {
        if t == text.len() {
            return Ok(pattern[p..].iter().all(|&byte| byte == b'%'));
        }
        let failed = if p == pattern.len() {
            true
        } else if pattern[p] == b'%' {
            while p < pattern.len() && matches!(pattern[p], b'%' | b'_') {
                if pattern[p] == b'_' {
                    if t == text.len() {
                        return Ok(false);
                    }
                    t = next_char(text, t);
                }
                p += 1;
            }
            if p == pattern.len() {
                return Ok(true);
            }
            let Some(found) = find(text, t, first_byte(pattern, p)?) else { return Ok(false) };
            last = Some((p, found));
            t = found;
            continue;
        } else if pattern[p] == b'_' {
            (t, p) = (next_char(text, t), p + 1);
            continue;
        } else {
            let literal = first_byte(pattern, p)?;
            p += usize::from(pattern[p] == b'\\');
            literal != text[t]
        };
        if !failed {
            (t, p) = (t + 1, p + 1);
            continue;
        }
        let Some((behind, tried)) = last else { return Ok(false) };
        let Some(found) = find(text, next_char(text, tried), first_byte(pattern, behind)?) else { return Ok(false) };
        last = Some((behind, found));
        (t, p) = (found, behind);
    }
}

/// The byte that has to come.
fn first_byte(pattern: &[u8], at: usize) -> Result<u8, EvaluationError> {
    let at = if pattern[at] == b'\\' { at + 1 } else { at };
    pattern.get(at).copied().ok_or(EvaluationError::Pattern)
}

fn find(text: &[u8], from: usize, byte: u8) -> Option<usize> {
    let mut at = from;
    while at < text.len() {
        if text[at] == byte {
            return Some(at);
        }
        at = next_char(text, at);
    }
    None
}

fn next_char(text: &[u8], at: usize) -> usize {
    let rest = text.get(at + 1..).unwrap_or_default();
    at + 1 + rest.iter().take_while(|&&byte| byte & 0xc0 == 0x80).count()
}

/// A pattern with an escape of its own, as one whose escapes are backslashes (`like_escape`).
pub(super) fn escaped(pattern: &str, escape: &str) -> Result<String, EvaluationError> {
    let mut chars = escape.chars();
    let (escape, more) = (chars.next(), chars.next());
    if more.is_some() {
        return Err(EvaluationError::Escape);
    }
    match escape {
        None => return Ok(pattern.replace('\\', "\\\\")),
        Some('\\') => return Ok(pattern.to_owned()),
        Some(_) => {}
    }
    let mut result = String::with_capacity(pattern.len());
    let mut after_escape = false;
    for char in pattern.chars() {
        if Some(char) == escape && !after_escape {
            result.push('\\');
            after_escape = true;
            continue;
        }
        if char == '\\' && !after_escape {
            result.push('\\');
        }
        result.push(char);
        after_escape = false;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_postgresql() {
        for (text, pattern, matched) in [
            ("", "", true),
            ("", "%", true),
            ("a", "", false),
            ("abc", "a%c", true),
            ("abcbc", "%bc", true),
            ("abcbd", "%bc", false),
            ("aé", "a_", true),
            ("aé", "a__", false),
            ("éé", "%_é", true),
            ("a%", "a\\%", true),
            ("ab", "a\\%", false),
            ("", "_", false),
            ("ab", "%_%_%", true),
            ("ab", "%_%_%_", false),
            ("mississippi", "%iss%ip%", true),
        ] {
            assert_eq!(matches(text, pattern), Ok(matched), "{text} like {pattern}");
        }
        assert_eq!(matches("a", "\\"), Err(EvaluationError::Pattern));
        assert_eq!(matches("", "\\"), Ok(false));
        assert_eq!(matches("", "%\\"), Ok(false));
        assert_eq!(matches("a", "%\\"), Err(EvaluationError::Pattern));
    }

    #[test]
    fn a_pattern_of_many_percents_needs_no_stack() {
        let (text, pattern) = ("a".repeat(10_000), "%a".repeat(10_000));
        assert_eq!(matches(&text, &pattern), Ok(true));
    }
}
