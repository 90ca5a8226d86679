# emu with plots and sweeps. Not built in continuous integration.
#   docker build -t emu . && docker run --rm -v "$PWD:/work" emu demo
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++
COPY . /emu
RUN pip wheel --no-deps -w /wheels /emu

FROM python:3.12-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
RUN pip install --no-cache-dir -c /constraints.txt "$(ls /wheels/*.whl)[analysis]"
WORKDIR /work
ENTRYPOINT ["emu"]
