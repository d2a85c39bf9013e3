# Needs BuildKit, for its cache mounts.
#
#   docker build --target coordinator -t nexus-coordinator .
#   docker build --target stub        -t nexus-stub .
#
# Both programs are static. The stub's image holds nothing else, so that it can be a layer of any image:
#   COPY --from=nexus-stub /nexus-stub /usr/local/bin/nexus-stub

ARG RUST=1.95
FROM rust:${RUST}-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
# With an explicit target the flag does not reach build scripts and procedural macros, which cannot be static.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN echo "$(uname -m)-unknown-linux-gnu" >/triple && mkdir /out
ENV CARGO_TARGET_DIR=/build

FROM build AS build-stub
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build,id=nexus-stub \
    cargo build --locked --release --target "$(cat /triple)" --no-default-features --features stub --bin nexus-stub \
    && cp "/build/$(cat /triple)/release/nexus-stub" /out/

FROM build AS build-coordinator
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build,id=nexus-coordinator \
    cargo build --locked --release --target "$(cat /triple)" --no-default-features --features coordinator --bin nexus-coordinator \
    && cp "/build/$(cat /triple)/release/nexus-coordinator" /out/

FROM scratch AS stub
COPY --from=build-stub /out/nexus-stub /nexus-stub
ENTRYPOINT ["/nexus-stub"]

# A base with a shell and certificates: drivers and people look into it.
FROM debian:bookworm-slim AS coordinator
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/nexus nexus && chmod 700 /var/lib/nexus
COPY --from=build-coordinator /out/nexus-coordinator /usr/local/bin/nexus-coordinator
USER nexus
VOLUME /var/lib/nexus
EXPOSE 8443
ENTRYPOINT ["/usr/local/bin/nexus-coordinator"]
CMD ["serve", "--listen", "0.0.0.0:8443", "--data", "/var/lib/nexus"]
