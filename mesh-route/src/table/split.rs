//! A weighted choice.

/// Shares of several things, drawn in proportion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights<T> {
    /// Each with the sum of all weights up to and including its own; those without a share are not here.
    shares: Box<[(u64, T)]>,
}

impl<T> Weights<T> {
    /// Shares by weight. One thing alone takes everything, whatever its weight; among several, those with
    /// weight 0 get nothing.
    pub fn new(things: impl IntoIterator<Item = (u32, T)>) -> Self {
        let mut things: Vec<_> = things.into_iter().collect();
        if let [(weight, _)] = &mut *things {
            *weight = (*weight).max(1);
        }
        let mut sum = 0_u64;
        let shares = things.into_iter().filter(|(weight, _)| *weight > 0).map(|(weight, thing)| {
            sum += u64::from(weight);
            (sum, thing)
        });
        Self { shares: shares.collect() }
    }

    /// The thing whose share `draw` falls into; `None` when nothing has a share.
    pub fn choose(&self, draw: u64) -> Option<&T> {
        match &*self.shares {
            [] => None,
            [(_, only)] => Some(only),
            shares => {
                let (total, _) = shares.last()?;
                // A multiply and a shift in place of a remainder: every bit of the draw counts.
                let point = u64::try_from((u128::from(draw) * u128::from(*total)) >> 64).ok()?;
                shares.iter().find(|(end, _)| point < *end).map(|(_, thing)| thing)
            }
        }
    }

    /// Each thing that has a share, with its weight.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let starts = std::iter::once(0).chain(self.shares.iter().map(|(end, _)| *end));
        self.shares.iter().zip(starts).map(|((end, thing), start)| (end - start, thing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(weights: &[u32], draws: u32, seed: u64) -> Vec<u32> {
        let split = Weights::new(weights.iter().copied().zip(0..));
        let (mut rng, mut counts) = (fastrand::Rng::with_seed(seed), vec![0; weights.len()]);
        for _ in 0..draws {
            counts[*split.choose(rng.u64(..)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn ninety_to_ten_over_a_thousand() {
        for seed in 0..20 {
            let counts = count(&[90, 10], 1000, seed);
            assert!((850..=950).contains(&counts[0]), "{counts:?}");
        }
    }

    #[test]
    fn one_alone_takes_all_and_zero_gets_nothing() {
        assert_eq!(Weights::new([(0, "a")]).choose(u64::MAX), Some(&"a"));
        let split = Weights::new([(0, "a"), (100, "b"), (0, "c")]);
        assert_eq!((split.choose(0), split.choose(u64::MAX)), (Some(&"b"), Some(&"b")));
        assert_eq!(Weights::new([(0, "a"), (0, "b")]).choose(1), None);
        assert_eq!(
            Weights::new([(1, "a"), (0, "b"), (3, "c")]).iter().collect::<Vec<_>>(),
            [(1, &"a"), (3, &"c")]
        );
    }

    proptest! {
        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(0_u32..1000, 1..6), seed: u64) {
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let draws = 20_000;
            for (weight, got) in weights.iter().zip(count(&weights, draws, seed)) {
                let want = f64::from(*weight) / f64::from(total);
                let share = f64::from(got) / f64::from(draws);
                // Six standard deviations.
                let tolerance = 6.0 * (want * (1.0 - want) / f64::from(draws)).sqrt() + 1e-9;
                prop_assert!((share - want).abs() <= tolerance, "{weights:?}: {share} for {want}");
            }
        }

        #[test]
        fn no_draw_panics(weights in prop::collection::vec(any::<u32>(), 0..5), draw: u64) {
            let _ = Weights::new(weights.into_iter().map(|w| (w, ()))).choose(draw);
        }
    }
}
