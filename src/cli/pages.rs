//! Lists come in pages; commands want items.

use super::error::Error;

/// As many as the daemon gives at once.
const PAGE_SIZE_MAX: usize = 1_000;

/// Reads pages until there are `limit` items, or no more. `page` takes a size and a token, and gives the items and
/// the next token. Answers with the items and the token of those that are left, empty when there are none.
pub async fn collect<T>(
    limit: usize,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Error>,
) -> Result<(Vec<T>, String), Error> {
    let (mut items, mut token) = (Vec::new(), String::new());
    while items.len() < limit {
        let size = i32::try_from((limit - items.len()).min(PAGE_SIZE_MAX)).unwrap_or(i32::MAX);
        let (more, next) = page(size, token).await?;
        items.extend(more);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    Ok((items, token))
}

/// How many items of a list to show.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Limit {
    /// At most so many; all when not given.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Limit {
    pub fn items_max(self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_read_until_the_limit() {
        let numbers: Vec<usize> = (0..2_500).collect();
        let page = async |size: i32, token: String| {
            let start: usize = token.parse().unwrap_or(0);
            let end = (start + usize::try_from(size).unwrap()).min(numbers.len());
            let next = if end < numbers.len() { end.to_string() } else { String::new() };
            Ok((numbers[start..end].to_vec(), next))
        };
        let (items, rest) = collect(usize::MAX, page).await.unwrap();
        assert_eq!((items.len(), rest.as_str()), (2_500, ""));
        let (items, rest) = collect(1_100, page).await.unwrap();
        assert_eq!((items.len(), rest.as_str()), (1_100, "1100"));
    }
}
