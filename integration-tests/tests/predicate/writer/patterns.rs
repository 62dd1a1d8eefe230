//! Random patterns of LIKE and regular expressions.

use rand::{RngExt, seq::IndexedRandom};

use super::Writer;

impl Writer<'_> {
    pub(super) fn regex(&mut self, text: &str, not: &str) -> String {
        if self.random.random_ratio(1, 3) {
            let pattern = self.pick(&[
                "'a%'",
                "'(a|é)_?'",
                "'%[a-c]'",
                "'[^a]+'",
                "'a!%c'",
                "'a.c'",
                "''",
                "'_{2}'",
                "null",
                "'a\\%c'",
            ]);
            return format!("{text} {not}similar to {pattern}{}", self.pick(&["", "", " escape '!'", " escape ''"]));
        }
        let op = self.pick(&["~", "~*", "!~", "!~*"]);
        let atoms = [
            "a",
            "A",
            ".",
            "[a-c]",
            "[^a-z]",
            "(a|b)",
            "(?:é|)",
            "\\d",
            "\\W",
            "\\.",
            "[[:alpha:]_]",
            "[]%-]",
            "b",
            " ",
            "\\s",
            "'' ",
            "[A-Z\\d]",
            "$",
            "^",
            "\\m",
            "\\y",
        ];
        let mut pattern = self.pick(&["", "^", ""]).to_owned();
        for _ in 0..self.random.random_range(0..4) {
            pattern += atoms.choose(self.random).copied().unwrap_or_default();
            pattern += self.pick(&["", "", "*", "+", "?", "{2}", "{1,}?", "{0,3}"]);
        }
        pattern += self.pick(&["", "$", "|b", ""]);
        format!("{text} {op} '{pattern}'")
    }

    pub(super) fn pattern(&mut self, not: &str) -> String {
        let text = self.text(1);
        if self.random.random_ratio(1, 2) {
            return self.regex(&text, not);
        }
        let like = self.pick(&["like", "ilike"]);
        let pattern =
            self.pick(&["'a%'", "'%c'", "'_'", "'a_c'", "'a\\%c'", "'%\\'", "'A%'", "'é%'", "''", "t", "v", "'a!_c'"]);
        let escape = self.pick(&["", "", " escape '!'", " escape ''", " escape '\\'"]);
        if self.random.random_ratio(1, 4) {
            let patterns = self.pick(&[
                "array['a%', '%c']",
                "'{a_,\"a%c\",NULL}'",
                "'{}'",
                "array['_b', null, 'A%']",
                "'{%}'::text[]",
            ]);
            return format!("{text} {not}{like} {} ({patterns})", self.pick(&["any", "all", "some"]));
        }
        format!("{text} {not}{like} {pattern}{escape}")
    }
}
