# Two images from one file: docker build --target gateway . and docker build --target worker .
# Every RUN is a script of images/; .ci/run and tests/images run the same ones on a fresh Debian 12, without docker.

FROM debian:12.15-slim AS build
WORKDIR /src
COPY images/system.sh images/requirements.sh images/
RUN images/system.sh build
ENV PATH=/opt/uv/bin:$PATH UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
COPY pyproject.toml ./
COPY clients/python/pyproject.toml clients/python/

FROM build AS gateway-requirements
RUN --mount=type=cache,target=/root/.cache/uv images/requirements.sh service /opt/gateway

FROM build AS worker-requirements
RUN --mount=type=cache,target=/root/.cache/uv images/requirements.sh worker /opt/worker

FROM build AS wheels
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv images/wheels.sh /wheels

FROM debian:12.15-slim AS gateway
COPY images/system.sh /usr/local/sbin/
RUN system.sh gateway
COPY --from=gateway-requirements /opt/gateway /opt/gateway
RUN --mount=type=bind,from=wheels,target=/build \
    PATH=/build/opt/uv/bin:$PATH /build/src/images/install.sh /opt/gateway /build/wheels
ENV PATH=/opt/gateway/bin:$PATH PYTHONSAFEPATH=1 HERD_GATEWAY_HOST=0.0.0.0
USER 10001:10001
WORKDIR /home/herd
EXPOSE 50051
ENTRYPOINT ["python", "-m", "service"]

FROM debian:12.15-slim AS worker
COPY images/system.sh /usr/local/sbin/
RUN system.sh worker
COPY --from=worker-requirements /opt/worker /opt/worker
RUN --mount=type=bind,from=wheels,target=/build \
    PATH=/build/opt/uv/bin:$PATH /build/src/images/install.sh /opt/worker /build/wheels
# The folder that a volume should keep: compiled kernels, Triton's and the driver's.
ENV PATH=/opt/worker/bin:$PATH PYTHONSAFEPATH=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/home/herd/.cache/triton CUDA_CACHE_PATH=/home/herd/.cache/nv
USER 10001:10001
WORKDIR /home/herd
ENTRYPOINT ["python", "-m", "worker"]
