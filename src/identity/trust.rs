//! What a client remembers of its coordinator: the trust domain and the certificates of its authorities. There is one,
//! and a second while one takes the other's place. Refuses a certificate that is not an authority's own, and an
//! authority that none of those it knows has vouched for.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::wire::limits::{MAX_AUTHORITIES, MAX_CROSSED};
use crate::wire::name::TrustDomain;

use super::certificate::{only_uri, parse_x509, system_time};
use super::{IdentityError, KeyPin, pem, uri};

/// One authority's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The certificate.
    pub ca: CertificateDer<'static>,
    /// The pin of its key.
    pub pin: KeyPin,
}

/// The authorities that are believed, and the domain they speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The domain their certificates may name.
    pub domain: TrustDomain,
    /// Newest first; never empty.
    anchors: Vec<Anchor>,
}

impl Trust {
    /// Trust in one authority, whose certificate is marked as one, signed by itself, and named by its domain alone.
    pub fn from_der(ca: CertificateDer<'static>) -> Result<Trust, IdentityError> {
        let certificate = parse_x509(&ca)?;
        if !certificate.is_ca() {
            return Err(IdentityError::malformed("the certificate is not an authority's"));
        }
        let domain = uri::parse_domain_uri(only_uri(&certificate)?)
            .ok_or_else(|| IdentityError::malformed("the authority's certificate names no trust domain"))?;
        certificate
            .verify_signature(None)
            .map_err(|_| IdentityError::malformed("the authority's certificate is not signed by itself"))?;
        let pin = KeyPin::of_spki(certificate.public_key().raw);
        Ok(Trust { domain, anchors: vec![Anchor { ca, pin }] })
    }

    /// Reads one authority's certificate in PEM; refuses more than one.
    pub fn from_pem(text: &str) -> Result<Trust, IdentityError> {
        let mut certificates = pem::certificates(text)?;
        match (certificates.pop(), certificates.is_empty()) {
            (Some(ca), true) => Trust::from_der(ca),
            _ => Err(IdentityError::malformed("more than one certificate where the authority's should be")),
        }
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote, from a place that only its owner can write: whoever wrote it is
    /// believed.
    pub fn kept_from_pem(text: &str) -> Result<Trust, IdentityError> {
        Trust::of_all(pem::certificates(text)?.into_iter().map(Trust::from_der).collect::<Result<_, _>>()?)
    }

    /// Trust in all of these together, newest first; refuses authorities of several domains.
    pub fn of_all(all: Vec<Trust>) -> Result<Trust, IdentityError> {
        let mut anchors: Vec<Anchor> = Vec::new();
        let domain = all.first().ok_or(IdentityError::NoCertificate)?.domain.clone();
        for trust in all {
            if trust.domain != domain {
                return Err(IdentityError::malformed("authorities of several trust domains"));
            }
            anchors.extend(trust.anchors);
        }
        if anchors.len() > MAX_AUTHORITIES {
            return Err(IdentityError::TooLarge {
                what: "a list of authorities",
                len: anchors.len(),
                max: MAX_AUTHORITIES,
            });
        }
        Ok(Trust { domain, anchors })
    }

    /// The authorities' certificates in PEM, newest first.
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(|anchor| pem::encode("CERTIFICATE", &anchor.ca)).collect()
    }

    /// The newest authority.
    pub fn newest(&self) -> &Anchor {
        &self.anchors[0]
    }

    /// All authorities, newest first.
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// The pin of the newest authority's key.
    pub fn ca_pin(&self) -> KeyPin {
        self.newest().pin
    }

    /// How many authorities are newer than the one with this key; `None` when it is not believed.
    pub fn age(&self, pin: KeyPin) -> Option<usize> {
        self.anchors.iter().position(|anchor| anchor.pin == pin)
    }

    /// Whether both believe an authority.
    pub fn shares(&self, other: &Trust) -> bool {
        self.anchors.iter().any(|anchor| other.age(anchor.pin).is_some())
    }

    /// For rustls: these authorities and no other.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        let mut roots = RootCertStore::empty();
        for anchor in &self.anchors {
            roots
                .add(anchor.ca.clone())
                .map_err(|e| IdentityError::malformed(format!("the authority's certificate: {e}")))?;
        }
        Ok(Arc::new(roots))
    }

    /// Trust with the authorities that `bundle` adds at `now`. None that is believed here is forgotten, but for want of room.
    ///
    /// Whoever brings the bundle need not be believed, so it may lack an authority that is in force, the one that signs even:
    /// to forget that one would lock its owner out. An authority is added when it is the next after one that is believed.
    /// Beyond [`MAX_AUTHORITIES`] the oldest goes: an authority vouches for the next only when the one before it is retired.
    pub fn learn(&self, bundle: &Bundle, now: SystemTime) -> Result<Trust, IdentityError> {
        let (named, mut reached) = self.named(bundle, now)?;
        let mut anchors = self.anchors.clone();
        for (place, anchor) in named.into_iter().rev() {
            // When one between is not there, it may be the one that signs.
            if place + 1 == reached {
                reached = place;
                anchors.insert(0, anchor);
            }
        }
        anchors.truncate(MAX_AUTHORITIES);
        Ok(Trust { domain: self.domain.clone(), anchors })
    }

    /// Trust in the authorities that `bundle` names at `now`, and no others. Only for a bundle of which it is known that its
    /// newest authority signs; see [`follow_renewal`](Self::follow_renewal).
    pub fn follow(&self, bundle: &Bundle, now: SystemTime) -> Result<Trust, IdentityError> {
        let anchors = self.named(bundle, now)?.0.into_iter().map(|(_, anchor)| anchor).collect();
        Ok(Trust { domain: self.domain.clone(), anchors })
    }

    /// Trust after a renewal whose answer was this `leaf`, for a key of ours, and `bundle`.
    ///
    /// A leaf by the newest authority shows that this one signs, and so that whoever forgets the others still knows the one
    /// that signs, now and later. Without it none is forgotten.
    pub fn follow_renewal(
        &self,
        bundle: &Bundle,
        leaf: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<Trust, IdentityError> {
        let followed = self.follow(bundle, now)?;
        let is_shown = followed.ca_pin() == bundle.signs() && is_signed(leaf, &followed.newest().ca);
        if is_shown { Ok(followed) } else { self.learn(bundle, now) }
    }

    /// The authorities of `bundle` that have a place in the line of those believed here, newest first, each with that place,
    /// which is how many are newer; and the place of the newest that is believed.
    ///
    /// The newest that is believed vouches for the one after it, that one for the next; an older one vouches for nobody any
    /// more. One without a place may be older than all that are believed: whoever came after a switch never knew the former.
    /// It is left out, when the one that signs is as new as ours. Otherwise the bundle is refused whole.
    fn named(&self, bundle: &Bundle, now: SystemTime) -> Result<(Vec<(usize, Anchor)>, usize), IdentityError> {
        // Keys, newest first, with the certificate that each was met in.
        let mut line: Vec<(KeyPin, &CertificateDer<'static>)> =
            self.anchors.iter().map(|anchor| (anchor.pin, &anchor.ca)).collect();
        // Each step uses a certificate of the bundle up, so a circle ends.
        for _ in 0..bundle.crossed.len() {
            let newest = line[0].1;
            let step = bundle.crossed.iter().find_map(|crossed| {
                let pin = self.vouched(crossed, newest, now)?;
                line.iter().all(|(known, _)| *known != pin).then_some((pin, crossed))
            });
            let Some(step) = step else { break };
            line.insert(0, step);
        }
        if bundle.trust.domain != self.domain {
            return Err(IdentityError::NotVouchedFor);
        }
        let own = line.len() - self.anchors.len();
        let place = |pin: KeyPin| line.iter().position(|(known, _)| *known == pin);
        let may_leave_out = place(bundle.signs()).is_some_and(|place| place <= own);
        let mut named = Vec::new();
        for anchor in &bundle.trust.anchors {
            match place(anchor.pin) {
                Some(place) => named.push((place, anchor.clone())),
                None if may_leave_out => {}
                None => return Err(IdentityError::NotVouchedFor),
            }
        }
        named.sort_by_key(|(place, _)| *place);
        named.dedup_by_key(|(place, _)| *place);
        match named.first() {
            Some((newest, _)) if *newest <= own => Ok((named, own)),
            _ => Err(IdentityError::NotVouchedFor),
        }
    }

    /// The pin of the authority in `crossed`, if the one in `by` has certified it for our domain and for now.
    fn vouched(&self, crossed: &CertificateDer<'_>, by: &CertificateDer<'_>, now: SystemTime) -> Option<KeyPin> {
        let (crossed, by) = (parse_x509(crossed).ok()?, parse_x509(by).ok()?);
        let of_domain = uri::parse_domain_uri(only_uri(&crossed).ok()?)? == self.domain;
        let validity = crossed.validity();
        let is_in_time =
            system_time(validity.not_before).ok()? <= now && now <= system_time(validity.not_after).ok()?;
        let is_signed = || crossed.verify_signature(Some(by.public_key())).is_ok();
        let vouched = crossed.is_ca() && of_domain && is_in_time && is_signed();
        vouched.then(|| KeyPin::of_spki(crossed.public_key().raw))
    }
}

/// Whether the key in `by` has signed `certificate`.
fn is_signed(certificate: &CertificateDer<'_>, by: &CertificateDer<'_>) -> bool {
    let (Ok(certificate), Ok(by)) = (parse_x509(certificate), parse_x509(by)) else { return false };
    certificate.verify_signature(Some(by.public_key())).is_ok()
}

/// What a coordinator says of its authorities: those in force, the one that signs first; then certificates with which
/// an authority vouches for the one after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Not in order of age: the one that signs is first.
    trust: Trust,
    crossed: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// `signing` signs, `others` are in force beside it; `crossed` vouch.
    pub fn new(
        signing: Trust,
        others: Vec<Trust>,
        crossed: Vec<CertificateDer<'static>>,
    ) -> Result<Bundle, IdentityError> {
        if crossed.len() > MAX_CROSSED {
            return Err(IdentityError::TooLarge { what: "a list of vouchers", len: crossed.len(), max: MAX_CROSSED });
        }
        let all = std::iter::once(signing).chain(others).collect();
        Ok(Bundle { trust: Trust::of_all(all)?, crossed })
    }

    /// Reads it; refuses what has no authority in it, too many of them, or those of several domains.
    pub fn from_pem(text: &str) -> Result<Bundle, IdentityError> {
        let (mut authorities, mut crossed) = (Vec::new(), Vec::new());
        for certificate in pem::certificates(text)? {
            match Trust::from_der(certificate.clone()) {
                Ok(trust) => authorities.push(trust),
                // Whether it vouches is looked at when it is needed.
                Err(_) => crossed.push(certificate),
            }
        }
        if authorities.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let others = authorities.split_off(1);
        Bundle::new(authorities.remove(0), others, crossed)
    }

    /// Reads certificates with which authorities vouch.
    pub fn vouchers_from_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        pem::certificates(text)
    }

    /// PEM, in its order.
    pub fn to_pem(&self) -> String {
        let crossed = self.crossed.iter().map(|crossed| pem::encode("CERTIFICATE", crossed));
        std::iter::once(self.trust.to_pem()).chain(crossed).collect()
    }

    /// How many authorities are in force.
    pub fn in_force(&self) -> usize {
        self.trust.anchors.len()
    }

    /// The pin of the authority that signs.
    pub fn signs(&self) -> KeyPin {
        self.trust.ca_pin()
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
