# A static binary on an empty image: no shell, no package manager, no root.
#
#   docker build -t tidegate .
#   docker run -v tidegate-data:/var/lib/tidegate -v ./tidegate.yaml:/etc/tidegate.yaml:ro tidegate

FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base cmake perl
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tidegate \
 && mkdir -p /image/var/lib/tidegate /image/tmp /image/usr/bin \
 && cp target/release/tidegate /image/usr/bin/ \
 && chown -R 10001:10001 /image/var/lib/tidegate && chmod 1777 /image/tmp

FROM scratch
COPY --from=build /image/ /
USER 10001:10001
VOLUME /var/lib/tidegate
EXPOSE 7171 7172
ENTRYPOINT ["/usr/bin/tidegate"]
CMD ["serve", "--config", "/etc/tidegate.yaml"]
