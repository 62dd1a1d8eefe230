//! Names near a mistyped one, for error messages.

/// How many names an error lists.
const NAMES_MAX: usize = 3;
/// Names beyond these are not compared, so that a mistyped name costs little in a database with many tables.
const COMPARED_MAX: usize = 10_000;

/// The known names most like the given one, best first; empty when none is like it.
#[must_use]
pub fn near(name: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    let wanted = name.to_lowercase();
    let mut found: Vec<(f64, String)> = known
        .take(COMPARED_MAX)
        .map(|known| (strsim::jaro_winkler(&wanted, &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .collect();
    found.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.cmp(y)));
    // Names share a schema: what is much less like it than the best is like it by that alone.
    let best = found.first().map_or(0.0, |(likeness, _)| *likeness);
    found.retain(|(likeness, _)| best - likeness < 0.05);
    found.truncate(NAMES_MAX);
    found.into_iter().map(|(_, known)| known).collect()
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn the_likest_name_comes_first() {
        let known = ["public.orders", "public.order_items", "shop.prices"].map(str::to_owned);
        let names = near("public.oders", known.into_iter());
        assert_eq!(names.first().map(String::as_str), Some("public.orders"));
        assert!(!names.contains(&"shop.prices".to_owned()));
    }
}
