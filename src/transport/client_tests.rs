//! What a client makes of the authorities that it hears of, without a network.

use std::time::Duration;

use super::*;
use crate::identity::{Authority, Identity, PrivateKey, Role};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority() -> Authority {
    Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap()
}

fn credential(by: &Authority) -> Credential {
    let key = PrivateKey::generate().unwrap();
    let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
    let chain = by.issue(&key.csr_der().unwrap(), &identity, DAY, SystemTime::now(), &[]).unwrap();
    Credential::new(chain, key).unwrap()
}

fn client(trust: &Trust, by: &Authority) -> CoordinatorClient {
    CoordinatorClient::new("https://127.0.0.1:1".parse().unwrap(), trust.clone(), credential(by))
}

fn is_overtaken(client: &CoordinatorClient) -> bool {
    client.is_overtaken(&client.credential())
}

/// What a renewal does that was answered with this list and a certificate by `by`.
fn renew(client: &CoordinatorClient, list: &str, by: &Authority) {
    client.heard().told = Some(client.trust().ca_pin());
    let fresh = credential(by);
    client.hear(list, fresh.chain.first(), SystemTime::now()).unwrap();
    client.credential.store(Arc::new(fresh));
}

fn believed(client: &CoordinatorClient) -> Vec<KeyPin> {
    client.trust().anchors().iter().map(|anchor| anchor.pin).collect()
}

#[test]
fn a_list_without_the_one_that_signs_costs_a_renewal_and_no_authority() {
    let (first, next) = (authority(), authority());
    let pins = [&next, &first].map(|authority| authority.trust().ca_pin());
    let crossed = vec![first.vouch(&next, SystemTime::now()).unwrap()];
    let list = |signs: &Authority, others: Vec<Trust>| {
        Bundle::new(signs.trust().clone(), others, crossed.clone()).unwrap().to_pem()
    };
    let without = list(&next, vec![]);
    let published = list(&first, vec![next.trust().clone()]);
    let client = client(first.trust(), &first);
    assert!(!is_overtaken(&client));
    assert!(client.hear(&without, None, SystemTime::now()).unwrap());
    assert_eq!(believed(&client), pins);
    assert!(is_overtaken(&client));
    renew(&client, &without, &first);
    assert_eq!(believed(&client), pins);
    // The truth is heard again.
    client.hear(&published, None, SystemTime::now()).unwrap();
    renew(&client, &published, &first);
    assert!(!is_overtaken(&client));
    assert_eq!(believed(&client), pins);
    // And when the former is retired indeed, a look asks for the renewal that shows it.
    renew(&client, &list(&next, vec![first.trust().clone()]), &next);
    assert_eq!(believed(&client), pins);
    assert!(!is_overtaken(&client));
    assert!(!client.hear(&without, None, SystemTime::now()).unwrap());
    assert!(is_overtaken(&client));
    renew(&client, &without, &next);
    assert!(!is_overtaken(&client));
    assert_eq!(believed(&client), pins[..1]);
}

#[test]
fn who_begins_in_a_rotation_tells_what_it_believes() {
    let (first, next) = (authority(), authority());
    let both = Trust::of_all(vec![next.trust().clone(), first.trust().clone()]).unwrap();
    let client = client(&both, &first);
    assert!(is_overtaken(&client));
    client.heard().told = Some(both.ca_pin());
    assert!(!is_overtaken(&client));
}
