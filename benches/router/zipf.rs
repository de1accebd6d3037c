//! Zipf(1.0): the n-th most popular of many is asked for 1/n as often as the first.

/// Draws ranks.
#[derive(Debug)]
pub struct Zipf {
    /// How much of the whole the ranks up to this one have.
    up_to: Vec<f64>,
}

impl Zipf {
    pub fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        for part in &mut up_to {
            *part /= sum;
        }
        Self { up_to }
    }

    /// A rank, from 0.
    pub fn draw(&self) -> usize {
        let point = rand::random::<f64>();
        self.up_to.partition_point(|part| *part < point).min(self.up_to.len() - 1)
    }

    pub fn count(&self) -> usize {
        self.up_to.len()
    }

    /// How much of everything goes to the `kept` most popular.
    pub fn share(&self, kept: usize) -> f64 {
        self.up_to[kept.min(self.up_to.len()) - 1]
    }
}
