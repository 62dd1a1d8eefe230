//! Random dates, times and intervals.

use rand::RngExt;

use super::Writer;

impl Writer<'_> {
    pub(super) fn moment(&mut self, depth: usize) -> String {
        if depth == 0 || self.random.random_ratio(1, 2) {
            return self
                .pick(&[
                    "dt",
                    "ts",
                    "dt",
                    "ts",
                    "iv",
                    "tm",
                    "tz",
                    "'2024-02-29'::date",
                    "timestamp '2000-01-01 12:00'",
                    "interval '1 mon'",
                    "i",
                    "'1 day 02:00'::interval",
                    "s",
                    "time '23:00'",
                ])
                .to_owned();
        }
        let (a, b) = (self.moment(depth - 1), self.moment(depth - 1));
        match self.random.random_range(0..9) {
            0..=2 => format!("({a} + {b})"),
            3..=4 => format!("({a} - {b})"),
            5 => format!(
                "date_trunc('{}', ({a})::timestamp)",
                self.pick(&["month", "week", "quarter", "day", "hour", "year", "second"])
            ),
            7 => format!(
                "({} at time zone '{}')",
                self.pick(&[
                    "ts",
                    "tz",
                    "timestamp '2024-03-31 02:30'",
                    "timestamptz '2024-10-27 00:30:00+00'",
                    "timestamp '2050-10-30 02:30'",
                    "timestamp '1999-12-31 23:59:59'"
                ]),
                self.pick(&["UTC", "Europe/Berlin", "America/New_York", "asia/kolkata", "Australia/Lord_Howe"])
            ),
            6 => format!("({a})::{}", self.pick(&["date", "timestamp", "time", "interval"])),
            _ => format!("-({a})"),
        }
    }

    pub(super) fn of_moment(&mut self, depth: usize) -> String {
        let (a, b) = (self.moment(depth + 1), self.moment(depth + 1));
        let op = self.pick(&["=", "<>", "<", ">="]);
        let field = self.pick(&[
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "second",
            "epoch",
            "dow",
            "isodow",
            "doy",
            "week",
            "isoyear",
            "quarter",
            "milliseconds",
            "microseconds",
        ]);
        match self.random.random_range(0..7) {
            4 => format!(
                "age({}, {}) {op} {}",
                self.pick(&["case when isfinite(ts) then ts end", "'2024-03-31 12:00'::timestamp", "ts"]),
                self.pick(&[
                    "timestamp '2000-02-29'",
                    "case when isfinite(dt) then least(dt, '2024-02-29')::timestamp end",
                    "'2024-01-30 23:59:59'",
                ]),
                self.pick(&["'1 mon'", "iv", "interval '24 years'"])
            ),
            5 => format!("isfinite({a})"),
            6 => format!(
                "{} {op} {}",
                self.pick(&["extract(epoch from tz)", "date_part('epoch', tz)", "extract(epoch from tz)"]),
                self.number(0)
            ),
            0 | 1 => format!("{a} {op} {b}"),
            2 => format!("extract({field} from {a}) {op} {}", self.number(0)),
            _ => format!("date_part('{field}', {a}) {op} {}", self.pick(&["12", "2", "2024", "0.5", "59.789", "i"])),
        }
    }
}
