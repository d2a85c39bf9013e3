//! What the store remembers of authorities: which there are and were, and by which one each member's certificate is. Keys
//! are not in it.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::store::{Change, MAX_ROWS, Store, StoreError, parse};
use crate::identity::KeyPin;

/// Adds authorities and leaves to the file.
pub(super) const MIGRATION: &str = "
CREATE TABLE authority (
    number INTEGER NOT NULL PRIMARY KEY,
    pin TEXT NOT NULL UNIQUE,
    certificate TEXT NOT NULL,
    crossed TEXT,
    published INTEGER NOT NULL,
    signs INTEGER,
    retired INTEGER
) STRICT;
CREATE TABLE leaf (
    pin TEXT NOT NULL PRIMARY KEY,
    authority TEXT NOT NULL,
    trusts TEXT,
    ends INTEGER NOT NULL
) STRICT;
";

/// An authority, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// Its key.
    pub pin: KeyPin,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The certificate with which the one before it vouches for it, PEM.
    pub crossed: Option<String>,
    /// Since when members are told of it.
    pub published: i64,
    /// Since when it signs, or when it began to.
    pub signs: Option<i64>,
    /// Since when it is believed no more.
    pub retired: Option<i64>,
}

/// A member in force, and the certificate that it was given last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// `device` or `workspace`.
    pub what: String,
    /// Its name.
    pub name: String,
    /// The authority that signed its certificate; `None` if that was before this was noted.
    pub authority: Option<KeyPin>,
    /// The newest authority that it has said to believe.
    pub trusts: Option<KeyPin>,
    /// When the certificate ends.
    pub ends: Option<i64>,
}

impl Store {
    /// Every authority that there was, oldest first.
    pub async fn authorities(&self) -> Result<Vec<AuthorityRecord>, StoreError> {
        authorities(&mut *self.pool.acquire().await?).await
    }

    /// Every member that is in force and has a key, by name.
    pub async fn members(&self) -> Result<Vec<MemberRecord>, StoreError> {
        members(&mut *self.pool.acquire().await?).await
    }
}

impl Change {
    /// Every authority that there was, oldest first.
    pub async fn authorities(&mut self) -> Result<Vec<AuthorityRecord>, StoreError> {
        authorities(self.connection()).await
    }

    /// Every member that is in force and has a key, by name.
    pub async fn members(&mut self) -> Result<Vec<MemberRecord>, StoreError> {
        members(self.connection()).await
    }

    /// Adds an authority, as the newest.
    pub async fn put_authority(&mut self, record: &AuthorityRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO authority (pin, certificate, crossed, published, signs, retired) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(record.pin.to_string())
        .bind(&record.certificate)
        .bind(&record.crossed)
        .bind(record.published)
        .bind(record.signs)
        .bind(record.retired)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// From `now` on this authority signs.
    pub async fn sign_with(&mut self, pin: KeyPin, now: i64) -> Result<(), StoreError> {
        let sql = "UPDATE authority SET signs = ? WHERE pin = ?";
        sqlx::query(sql).bind(now).bind(pin.to_string()).execute(self.connection()).await?;
        Ok(())
    }

    /// From `now` on this authority is believed no more.
    pub async fn retire_authority(&mut self, pin: KeyPin, now: i64) -> Result<(), StoreError> {
        let sql = "UPDATE authority SET retired = ? WHERE pin = ?";
        sqlx::query(sql).bind(now).bind(pin.to_string()).execute(self.connection()).await?;
        Ok(())
    }

    /// Notes which authority signed the certificate of the member with this key, and until when. Forgets keys that nobody
    /// has any more.
    pub async fn put_leaf(&mut self, pin: KeyPin, authority: KeyPin, ends: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO leaf (pin, authority, ends) VALUES (?, ?, ?)
                   ON CONFLICT (pin) DO UPDATE SET authority = excluded.authority, ends = excluded.ends";
        let query = sqlx::query(sql).bind(pin.to_string()).bind(authority.to_string()).bind(ends);
        query.execute(self.connection()).await?;
        let sql = "DELETE FROM leaf WHERE pin NOT IN (SELECT pin FROM device)
                   AND pin NOT IN (SELECT pin FROM workspace WHERE pin IS NOT NULL)";
        sqlx::query(sql).execute(self.connection()).await?;
        Ok(())
    }

    /// Notes the newest authority that the member with this key believes, as it says itself.
    pub async fn put_trusts(&mut self, pin: KeyPin, trusts: KeyPin) -> Result<(), StoreError> {
        let sql = "UPDATE leaf SET trusts = ? WHERE pin = ?";
        sqlx::query(sql).bind(trusts.to_string()).bind(pin.to_string()).execute(self.connection()).await?;
        Ok(())
    }
}

async fn authorities(connection: &mut SqliteConnection) -> Result<Vec<AuthorityRecord>, StoreError> {
    let sql = "SELECT * FROM authority ORDER BY number LIMIT ?";
    let rows = sqlx::query(sql).bind(MAX_ROWS).fetch_all(connection).await?;
    rows.iter().map(authority).collect()
}

async fn members(connection: &mut SqliteConnection) -> Result<Vec<MemberRecord>, StoreError> {
    let sql = "SELECT what, name, authority, trusts, ends FROM (
                   SELECT 'device' AS what, name, pin FROM device WHERE revoked IS NULL
                   UNION ALL
                   SELECT 'workspace', name, pin FROM workspace WHERE revoked IS NULL AND pin IS NOT NULL
               ) AS member LEFT JOIN leaf ON leaf.pin = member.pin ORDER BY what, name LIMIT ?";
    let rows = sqlx::query(sql).bind(MAX_ROWS).fetch_all(connection).await?;
    rows.iter().map(member).collect()
}

fn authority(row: &SqliteRow) -> Result<AuthorityRecord, StoreError> {
    Ok(AuthorityRecord {
        pin: parse(row.try_get("pin")?, "authority pin")?,
        certificate: row.try_get("certificate")?,
        crossed: row.try_get("crossed")?,
        published: row.try_get("published")?,
        signs: row.try_get("signs")?,
        retired: row.try_get("retired")?,
    })
}

fn member(row: &SqliteRow) -> Result<MemberRecord, StoreError> {
    let pin = |column: &str| {
        let text: Option<&str> = row.try_get(column)?;
        text.map(|text| parse(text, "authority pin")).transpose()
    };
    Ok(MemberRecord {
        what: row.try_get("what")?,
        name: row.try_get("name")?,
        authority: pin("authority")?,
        trusts: pin("trusts")?,
        ends: row.try_get("ends")?,
    })
}
