//! On whose behalf a statement runs.

use tonic::Status;
use uuid::Uuid;

use crate::api::status;
use crate::domain::principal::Principal;

/// The user on whose behalf a statement runs. Callers who are a user may only name themselves, and do so by default.
pub(super) fn user(principal: &Principal, id: &str) -> Result<Option<Uuid>, Status> {
    if id.is_empty() {
        return Ok(principal.user);
    }
    let named = Uuid::parse_str(id)
        .map_err(|_no_uuid| status::invalid(vec![("user_id", format!("{id:?} is no UUID, and a user's id is one"))]))?;
    match principal.user {
        Some(own) if own != named => Err(status::denied("this caller is a user, and may name no other")),
        _ => Ok(Some(named)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::domain::principal::Scope;

    #[test]
    fn a_user_names_itself_and_nobody_else() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let service = Principal::new("service", [].into(), Scope::All);
        let person = Principal { user: Some(own), ..service.clone() };
        assert_eq!(user(&service, "").unwrap(), None);
        assert_eq!(user(&service, &other.to_string()).unwrap(), Some(other));
        assert_eq!(user(&person, "").unwrap(), Some(own));
        assert_eq!(user(&person, &own.to_string()).unwrap(), Some(own));
        assert_eq!(user(&person, &other.to_string()).unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(user(&service, "somebody").unwrap_err().code(), Code::InvalidArgument);
    }
}
