"""Who a participant is, and how it knows that this is the server.

================  =============================================================================
security.py       whether participants are served with TLS, and how they are known
identity.py ★     who a participant is, by its credentials
tokens.py ★       what a file of tokens says
token_file.py     reads it
peer_certificate.py ★  what gRPC doesn't see in a participant's certificate
certificates.py   the server's certificate, renewed while it runs
watched.py        files that are read again when they change
================  =============================================================================
"""
