"""Resolves a tenant, and reaches its database both ways: through the daemon, with typed values over its gRPC API, and
directly, with psycopg if that is installed.

    python client.py acme [--client-config FILE] [--generated DIRECTORY]

The code below ./generated is made by generate.py.
"""

import argparse
import datetime
import decimal
import json
import os
import pathlib
import sys
import tomllib
import uuid

import grpc

HERE = pathlib.Path(__file__).resolve().parent

# What the query returns is exactly what was sent: no type loses anything on the way.
SQL = """
SELECT $1::bigint       AS quantity,
       $2::numeric      AS price,
       $3::uuid         AS reference,
       $4::timestamptz  AS ordered_at,
       $5::jsonb        AS attributes,
       $6::bytea        AS signature,
       $7::text[]       AS tags,
       $8::date         AS shipped_on,
       (SELECT count(*) FROM articles) AS articles
"""
PARAMETERS = {
    "quantity": 9_007_199_254_740_993,  # more than a double can hold
    "price": decimal.Decimal("12345678901234567890.123456789"),
    "reference": uuid.UUID("0193f3a0-0000-7000-8000-000000000001"),
    "ordered_at": datetime.datetime(2026, 11, 21, 1, 44, 26, 123456, datetime.UTC),
    "attributes": {"grade": "S355", "coated": True},
    "signature": b"\x00\xff\x10",
    "tags": ["beam", 'with "quotes"', None],
    "shipped_on": None,
}


def client_config(named: str | None) -> dict:
    """Endpoint and key, from the first client file that there is."""
    named = named or os.environ.get("TENANTD_CLIENT_CONFIG")
    usual = [pathlib.Path(".tenantd/client.toml"), pathlib.Path.home() / ".config/tenantd/client.toml"]
    for path in [pathlib.Path(named)] if named else usual:
        if path.is_file():
            config = tomllib.loads(path.read_text())
            if "key_file" in config:
                config["key"] = (path.parent / config["key_file"]).read_text().strip()
            return config
    sys.exit("no client.toml was found; start a daemon with `tenantd dev`, or name the file with --client-config")


def channel(config: dict) -> grpc.Channel:
    """A channel to the endpoint, encrypted when it is https."""
    scheme, address = config["endpoint"].split("://", 1)
    if scheme == "http":
        return grpc.insecure_channel(address)
    roots = pathlib.Path(config["ca_file"]).read_bytes() if "ca_file" in config else None
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots))


def to_value(query, value):
    """A Python value as the API's Value. What has no field of its own travels as PostgreSQL's text form."""
    if value is None:
        return query.Value(null_value=query.NULL_VALUE_UNSPECIFIED)
    if isinstance(value, bool):
        return query.Value(bool_value=value)
    if isinstance(value, int):
        return query.Value(int64_value=value)
    if isinstance(value, float):
        return query.Value(double_value=value)
    if isinstance(value, bytes):
        return query.Value(bytes_value=value)
    if isinstance(value, list):
        return query.Value(array_value=query.ArrayValue(elements=[to_value(query, item) for item in value]))
    if isinstance(value, dict):
        return query.Value(text_value=json.dumps(value))
    if isinstance(value, datetime.datetime):
        return query.Value(text_value=value.isoformat())
    return query.Value(text_value=str(value))


# From PostgreSQL's text form, by the name of the column's type.
FROM_TEXT = {
    "numeric": decimal.Decimal,
    "uuid": uuid.UUID,
    "date": datetime.date.fromisoformat,
    "timestamp": datetime.datetime.fromisoformat,
    "timestamptz": datetime.datetime.fromisoformat,
    "json": json.loads,
    "jsonb": json.loads,
}


def from_value(value, type_name: str):
    """The API's Value as a Python value."""
    kind = value.WhichOneof("kind")
    if kind == "null_value":
        return None
    if kind == "array_value":
        return [from_value(element, type_name.removeprefix("_")) for element in value.array_value.elements]
    if kind == "text_value":
        return FROM_TEXT.get(type_name, str)(value.text_value)
    return getattr(value, kind)


def direct(route, sql: str) -> None:
    """Connects to the tenant's own database, as the tenant. Drop such a connection when the route's epoch grows."""
    try:
        import psycopg
    except ModuleNotFoundError:
        print("not connecting directly: psycopg is not installed")
        return
    with psycopg.connect(route.url, application_name="example", connect_timeout=10) as connection:
        (database, count) = connection.execute(sql).fetchone()
    print(f"directly: {count} articles in {database}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Resolve a tenant and run a query.")
    parser.add_argument("tenant", help="a tenant's code")
    parser.add_argument("--client-config", metavar="FILE")
    parser.add_argument("--generated", metavar="DIRECTORY", default=str(HERE / "generated"))
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.generated)
    try:
        from tenantd.v1 import query_service_pb2 as query
        from tenantd.v1 import query_service_pb2_grpc, router_service_pb2, router_service_pb2_grpc
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; run generate.py first")

    config = client_config(arguments.client_config)
    # The key goes along with every call.
    call = {"metadata": [("authorization", f"Bearer {config['key']}")], "timeout": 30}
    with channel(config) as connection:
        router = router_service_pb2_grpc.RouterServiceStub(connection)
        queries = query_service_pb2_grpc.QueryServiceStub(connection)
        try:
            route = router.ResolveTenant(
                router_service_pb2.ResolveTenantRequest(code=arguments.tenant, include_credentials=True), **call
            ).route
            parameters = [to_value(query, value) for value in PARAMETERS.values()]
            answer = queries.Execute(
                query.ExecuteRequest(tenant=route.tenant_id, sql=SQL, parameters=parameters), **call
            )
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")

    print(f"{route.code} is in the database {route.database} on {route.host}:{route.port}, at epoch {route.epoch}")
    row = {
        column.name: from_value(value, column.type_name)
        for column, value in zip(answer.columns, answer.rows[0].values, strict=True)
    }
    for name, value in row.items():
        print(f"  {name:<11} {value!r}")
    changed = [name for name, value in PARAMETERS.items() if row[name] != value]
    if changed:
        sys.exit(f"these came back changed: {', '.join(changed)}")
    print("every value came back as it was sent")
    direct(route, "SELECT current_database(), count(*) FROM articles")


if __name__ == "__main__":
    main()
