# The tag names one version of Python on one release of Debian, and is rebuilt for Debian's fixes.
# For the same bytes every time, add the digest that `docker buildx imagetools inspect` shows.
FROM python:3.13.16-slim-trixie AS base

FROM base AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/relay
COPY requirements.txt ./
RUN python -m pip --python /opt/relay/bin/python install --no-cache-dir \
    --require-hashes --only-binary :all: -r requirements.txt
COPY . ./
# Nothing is fetched here: flit-core, which builds relay, is among the locked requirements.
RUN python -m pip --python /opt/relay/bin/python install --no-cache-dir \
    --no-deps --no-build-isolation --no-index . \
    && python -m pip --python /opt/relay/bin/python uninstall --yes flit-core

FROM base
RUN python -m pip uninstall --yes pip \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH PORT=8000
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# With a SQLite outbox, relay.db is here and nothing is written elsewhere; with PostgreSQL nothing is.
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, because urllib would ask a proxy that the environment names for Segment's sake.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-I", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["relay"]
CMD ["serve", "--host", "0.0.0.0"]
