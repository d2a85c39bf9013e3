//! Whom a client follows from one authority to the next, and whom it does not.

use std::time::Duration;

use super::*;
use crate::identity::{Authority, Identity, PrivateKey, Role};

fn authority() -> Authority {
    Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap()
}

/// A certificate with which `by` vouches for `next`.
fn cross(by: &Authority, next: &Authority) -> CertificateDer<'static> {
    by.vouch(next, SystemTime::now()).unwrap()
}

fn bundle(signing: &Authority, others: &[&Authority], crossed: Vec<CertificateDer<'static>>) -> Bundle {
    let others = others.iter().map(|other| other.trust().clone()).collect();
    let made = Bundle::new(signing.trust().clone(), others, crossed).unwrap();
    let read = Bundle::from_pem(&made.to_pem()).unwrap();
    assert_eq!(read, made);
    read
}

/// The pins that are believed after following, newest first.
fn follow(trust: &Trust, bundle: &Bundle) -> Result<Vec<KeyPin>, IdentityError> {
    let followed = trust.follow(bundle, SystemTime::now())?;
    assert_eq!(Trust::kept_from_pem(&followed.to_pem()).unwrap(), followed);
    Ok(followed.anchors().iter().map(|anchor| anchor.pin).collect())
}

/// The pins that are believed after learning, newest first.
fn learn(trust: &Trust, bundle: &Bundle) -> Result<Vec<KeyPin>, IdentityError> {
    let learned = trust.learn(bundle, SystemTime::now())?;
    assert_eq!(Trust::kept_from_pem(&learned.to_pem()).unwrap(), learned);
    Ok(learned.anchors().iter().map(|anchor| anchor.pin).collect())
}

/// The pins that are believed after a renewal with a leaf by `by`, newest first.
fn renew(trust: &Trust, bundle: &Bundle, by: &Authority) -> Vec<KeyPin> {
    let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
    let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
    let leaf = by.issue(&csr, &identity, Duration::from_secs(60), SystemTime::now(), &[]).unwrap().remove(0);
    let renewed = trust.follow_renewal(bundle, &leaf, SystemTime::now()).unwrap();
    renewed.anchors().iter().map(|anchor| anchor.pin).collect()
}

fn pin(authority: &Authority) -> KeyPin {
    authority.trust().ca_pin()
}

#[test]
fn pem_round_trips_and_leaves_are_refused() {
    let now = SystemTime::now();
    let authority = authority();
    let trust = authority.trust();
    assert_eq!(&Trust::from_pem(&trust.to_pem()).unwrap(), trust);
    assert_eq!(trust.domain.as_str(), "d");
    let key = PrivateKey::generate().unwrap();
    let identity = Identity::new("d".parse().unwrap(), Role::Coordinator);
    let chain = authority.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(60), now, &[]).unwrap();
    assert!(Trust::from_der(chain[0].clone()).is_err());
    assert!(Trust::from_pem(&format!("{0}{0}", trust.to_pem())).is_err());
}

#[test]
fn what_is_kept_is_bounded_and_of_one_domain() {
    let all: String = (0..=MAX_AUTHORITIES).map(|_| authority().trust().to_pem()).collect();
    assert!(matches!(Trust::kept_from_pem(&all), Err(IdentityError::TooLarge { .. })));
    let foreign = Authority::create("e".parse().unwrap(), SystemTime::now()).unwrap();
    let mixed = authority().trust().to_pem() + &foreign.trust().to_pem();
    assert!(Trust::kept_from_pem(&mixed).is_err() && Bundle::from_pem(&mixed).is_err());
    let (first, next) = (authority(), authority());
    assert!(Bundle::new(first.trust().clone(), vec![], vec![cross(&first, &next); MAX_CROSSED + 1]).is_err());
}

#[test]
fn a_rotation_is_followed_step_by_step() {
    let (first, next) = (authority(), authority());
    let vouched = vec![cross(&first, &next)];
    let trust = first.trust();
    let published = bundle(&first, &[&next], vouched.clone());
    assert_eq!(published.signs(), pin(&first));
    assert_eq!(follow(trust, &published).unwrap(), [pin(&next), pin(&first)]);
    let trust = trust.follow(&published, SystemTime::now()).unwrap();
    assert_eq!((trust.age(pin(&next)), trust.age(pin(&first))), (Some(0), Some(1)));
    let switched = bundle(&next, &[&first], vouched.clone());
    assert_eq!(switched.signs(), pin(&next));
    assert_eq!(follow(&trust, &switched).unwrap(), [pin(&next), pin(&first)]);
    let retired = bundle(&next, &[], vouched);
    assert_eq!(follow(&trust, &retired).unwrap(), [pin(&next)]);
    // And by one who was away all the while.
    assert_eq!(follow(first.trust(), &retired).unwrap(), [pin(&next)]);
}

#[test]
fn two_rotations_are_followed_at_once_and_three_are_not() {
    let all: Vec<Authority> = (0..4).map(|_| authority()).collect();
    let crossed: Vec<_> = all.windows(2).map(|pair| cross(&pair[0], &pair[1])).collect();
    let third = bundle(&all[2], &[], vec![crossed[1].clone(), crossed[0].clone()]);
    assert_eq!(follow(all[0].trust(), &third).unwrap(), [pin(&all[2])]);
    let fourth = bundle(&all[3], &[], vec![crossed[2].clone(), crossed[1].clone()]);
    assert_eq!(follow(all[1].trust(), &fourth).unwrap(), [pin(&all[3])]);
    assert_eq!(follow(all[0].trust(), &fourth), Err(IdentityError::NotVouchedFor));
}

#[test]
fn nobody_slips_an_authority_in() {
    let (first, next, forged) = (authority(), authority(), authority());
    let refused = |trust: &Trust, bundle: &Bundle| assert_eq!(follow(trust, bundle), Err(IdentityError::NotVouchedFor));
    // Vouched for by nobody, by itself, or by the wrong one.
    refused(first.trust(), &bundle(&forged, &[], vec![]));
    refused(first.trust(), &bundle(&forged, &[&first], vec![]));
    refused(first.trust(), &bundle(&forged, &[&first], vec![cross(&forged, &first)]));
    refused(first.trust(), &bundle(&forged, &[&first], vec![cross(&next, &forged)]));
    // Beside the one that signs it may be an older one, and is left out.
    for crossed in [vec![], vec![cross(&forged, &first)], vec![cross(&next, &forged)]] {
        let beside = bundle(&first, &[&forged], crossed);
        assert_eq!(follow(first.trust(), &beside).unwrap(), [pin(&first)]);
        assert_eq!(learn(first.trust(), &beside).unwrap(), [pin(&first)]);
    }
    // A voucher whose signature is not right.
    let mut bent = cross(&first, &next).to_vec();
    *bent.last_mut().unwrap() ^= 1;
    refused(first.trust(), &bundle(&next, &[&first], vec![bent.into()]));
    // A leaf is no voucher.
    let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
    let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
    let leaf = first.issue(&csr, &identity, Duration::from_secs(60), SystemTime::now(), &[]).unwrap().remove(0);
    refused(first.trust(), &bundle(&forged, &[&first], vec![leaf]));
    // One that was overtaken vouches for nobody: whoever has stolen its key gains nothing with those who moved on.
    let both = first.trust().follow(&bundle(&next, &[&first], vec![cross(&first, &next)]), SystemTime::now()).unwrap();
    refused(&both, &bundle(&first, &[&forged], vec![cross(&first, &forged)]));
    refused(&both, &bundle(&forged, &[&next], vec![cross(&first, &forged)]));
    // Not yet, and no longer.
    let switched = bundle(&next, &[&first], vec![cross(&first, &next)]);
    let early = SystemTime::now() - Duration::from_secs(3600);
    let late = SystemTime::now() + Duration::from_secs(11 * 365 * 24 * 3600);
    for time in [early, late] {
        assert_eq!(first.trust().follow(&switched, time), Err(IdentityError::NotVouchedFor));
        assert_eq!(first.trust().learn(&switched, time), Err(IdentityError::NotVouchedFor));
    }
}

#[test]
fn who_comes_after_a_switch_does_without_the_former() {
    let (former, signs, next) = (authority(), authority(), authority());
    let switched = bundle(&signs, &[&former], vec![cross(&former, &signs)]);
    assert_eq!(learn(signs.trust(), &switched).unwrap(), [pin(&signs)]);
    assert_eq!(follow(signs.trust(), &switched).unwrap(), [pin(&signs)]);
    // And goes on from there.
    let published = bundle(&signs, &[&next], vec![cross(&signs, &next), cross(&former, &signs)]);
    assert_eq!(learn(signs.trust(), &published).unwrap(), [pin(&next), pin(&signs)]);
    // When one that is older than ours signs, it is no newcomer's bundle.
    let both = signs.trust().learn(&published, SystemTime::now()).unwrap();
    let back = bundle(&signs, &[&former], vec![cross(&former, &signs)]);
    assert_eq!(learn(&both, &back), Err(IdentityError::NotVouchedFor));
}

#[test]
fn nobody_is_made_to_forget_the_one_that_signs() {
    let (first, next) = (authority(), authority());
    let crossed = vec![cross(&first, &next)];
    // The next is published, the first signs; something between leaves the first out.
    let without = bundle(&next, &[], crossed.clone());
    assert_eq!(learn(first.trust(), &without).unwrap(), [pin(&next), pin(&first)]);
    assert_eq!(renew(first.trust(), &without, &first), [pin(&next), pin(&first)]);
    let both = first.trust().learn(&without, SystemTime::now()).unwrap();
    assert_eq!(renew(&both, &without, &first), [pin(&next), pin(&first)]);
    // The truth is believed from there.
    let published = bundle(&first, &[&next], crossed.clone());
    assert_eq!(learn(&both, &published).unwrap(), [pin(&next), pin(&first)]);
    assert_eq!(renew(&both, &published, &first), [pin(&next), pin(&first)]);
    // A leaf by the next shows that this one signs; a look at the same list does not.
    assert_eq!(learn(&both, &without).unwrap(), [pin(&next), pin(&first)]);
    assert_eq!(renew(&both, &without, &next), [pin(&next)]);
}

#[test]
fn nobody_is_led_past_the_one_that_signs() {
    let all: Vec<Authority> = (0..3).map(|_| authority()).collect();
    let crossed = vec![cross(&all[1], &all[2]), cross(&all[0], &all[1])];
    let trust = all[0].trust();
    // The second signs, the third is published; something between leaves the second out.
    let without = bundle(&all[2], &[], crossed.clone());
    assert_eq!(learn(trust, &without).unwrap(), [pin(&all[0])]);
    assert_eq!(renew(trust, &without, &all[1]), [pin(&all[0])]);
    let published = bundle(&all[1], &[&all[2]], crossed);
    assert_eq!(learn(trust, &published).unwrap(), [pin(&all[2]), pin(&all[1])]);
    // When the third signs indeed, it is followed by one who was away for two rotations.
    assert_eq!(renew(trust, &without, &all[2]), [pin(&all[2])]);
}

#[test]
fn what_is_learned_is_bounded_and_the_oldest_goes_first() {
    let all: Vec<Authority> = (0..3).map(|_| authority()).collect();
    let first = bundle(&all[1], &[&all[0]], vec![cross(&all[0], &all[1])]);
    let both = all[0].trust().learn(&first, SystemTime::now()).unwrap();
    let published = bundle(&all[1], &[&all[2]], vec![cross(&all[1], &all[2])]);
    assert_eq!(learn(&both, &published).unwrap(), [pin(&all[2]), pin(&all[1])]);
    let twice = bundle(&all[1], &[&all[1]], vec![cross(&all[0], &all[1])]);
    assert_eq!(learn(all[0].trust(), &twice).unwrap(), [pin(&all[1]), pin(&all[0])]);
    assert_eq!(follow(all[0].trust(), &twice).unwrap(), [pin(&all[1])]);
}

#[test]
fn nobody_goes_back() {
    let (first, next) = (authority(), authority());
    let crossed = vec![cross(&first, &next)];
    let both = first.trust().follow(&bundle(&next, &[&first], crossed.clone()), SystemTime::now()).unwrap();
    // What was said before the rotation, said again.
    assert_eq!(follow(&both, &bundle(&first, &[], vec![])), Err(IdentityError::NotVouchedFor));
    let retired = both.follow(&bundle(&next, &[], crossed.clone()), SystemTime::now()).unwrap();
    assert_eq!(follow(&retired, &bundle(&first, &[&next], crossed)), Err(IdentityError::NotVouchedFor));
}

#[test]
fn another_domain_is_another_coordinator() {
    let first = authority();
    let foreign = Authority::create("e".parse().unwrap(), SystemTime::now()).unwrap();
    // Even an authority cannot vouch for one of another domain.
    assert!(first.vouch(&foreign, SystemTime::now()).is_err());
    let of_foreign = Bundle::new(foreign.trust().clone(), vec![], vec![]).unwrap();
    assert_eq!(follow(first.trust(), &of_foreign), Err(IdentityError::NotVouchedFor));
}

proptest::proptest! {
    #[test]
    fn any_text_is_refused(text: String) {
        proptest::prop_assert!(Bundle::from_pem(&text).is_err());
        proptest::prop_assert!(Trust::kept_from_pem(&text).is_err());
    }
}
