// Package peer is how servers talk to each other: the messages, the protection of key material inside them, the
// typed calls and handlers over both, and one mutual-TLS port with an HTTP client and server on it. It knows
// nothing of a keystore or of raft's log, and touches no files.
//
//	calls.go     Calls: what one server asks another, in the keyring's own types
//	handlers.go  Handlers: what it answers
//	message.go   the messages; check.go has their limits
//	hpke.go      key material inside a message
//	port.go      Port: one listener for raft and for calls; admission.go has how a connection gets in
//	tls.go       which certificates are accepted; identity.go has what they say, lifetime.go when they end
//	dial.go      Dialer: the other end of a port; client.go, session.go, server.go: HTTP over it
//	channel.go   what both ends of one connection know, and nobody else
//	frame.go     bounds on what raft reads
//
// # Messages
//
// A message is JSON of at most [MaxMessage] bytes, with the version first and then exactly
// one kind:
//
//	{"version":1,"hello":{}}
//	{"version":1,"fetch":{"ids":["000102..0f"],"public":"<base64, 1216 bytes>"}}
//	{"version":1,"hold":{"keystore":"..","gained":[".."],"lost":[".."]}}
//	{"version":1,"ask":{"ids":[".."]}}
//	{"version":1,"offer":{"id":"..","algorithm":"RS256","check":"..","created":".."}}
//	{"version":2,"offer":{"id":"..",..,"created":"..","configuration":7}}
//
// The answers are as follows. An offer is answered like an ask, and any request may be answered with an error.
//
//	{"version":1,"hello":{"build":1,"keystore":"..","orphans":[{"id":"..",
//	    "algorithm":"RS256","public":"<base64 of PKIX DER>","check":"..","created":".."}]}}
//	{"version":1,"fetch":{"enc":"<base64, 1120 bytes>","keys":[{"id":"..","check":"..",
//	    "sealed":"<base64>"}]}}
//	{"version":1,"hold":{}}
//	{"version":1,"ask":{"keystore":"..","held":[".."]}}
//	{"version":1,"error":{"code":"not-leader","leader":".."}}
//
// Version 2 has one more request, with which any member asks any other what it is and knows now:
//
//	{"version":2,"state":{}}
//	{"version":2,"state":{"confirm":true}}
//	{"version":2,"state":{"time":"..","leads":true,"term":3,"entry":41,"applied":44,"configuration":1}}
//
// and more members: with hello a leader also asks for the key files that wait, and is told of them if there are any.
//
//	{"version":2,"hello":{"waiting":true}}
//	{"version":2,"hello":{"build":1,"keystore":"..","waiting":{"files":3,"of":50,"keks":["kms"]}}}
//
// Version 3 has more members: policies of an answerer, the version of key files that it reads, and orphans that are not to be
// adopted unless an operator asks for it.
//
//	{"version":3,"hello":{"waiting":true,"unproven":true}}
//	{"version":3,"hello":{"build":1,"keystore":"..","orphans":[{"id":"..",..,"created":"..","unproven":true}]}}
//	{"version":3,"state":{"files":true}}
//	{"version":3,"state":{"time":"..","leads":false,"term":3,"entry":41,"applied":44,"configuration":1,"files":2}}
//
// Version 4 has one more request, with which a server asks the leader to remove it, and no other server, from the cluster:
//
//	{"version":4,"leave":{"by":"ann"}}
//	{"version":4,"leave":{}}
//	{"version":4,"leave":{"atRisk":"no majority of .. holds .."}}
//
// A message carries the lowest version that has its kind and each of its members, and is refused if it carries
// another. An answer is never of a higher version than its request. A build that does not know the version of a
// request answers "unsupported", in version 1, and the caller goes on without an answer.
//
// IDs are 32 and check values 64 lowercase hexadecimal digits, base64 is the standard one
// with padding, times are RFC 3339 in UTC, and empty lists are left out. A message is
// accepted only if encoding it again gives the same bytes.
//
// # Key material
//
// The keys of one fetch answer are sealed by one HPKE sender (RFC 9180, base mode;
// MLKEM768-X25519, HKDF-SHA256, AES-256-GCM), in the order of the list, to the public key
// of the request. With lp(x) = the length of x as 4 bytes, big endian, followed by x:
//
//	info = lp("keyring v1 fetch") || lp(cluster) || lp(asker) || lp(answerer) || lp(SHA-256(request))
//	aad  = id (16 bytes) || check value (32 bytes)
//
// This protects against an attacker who reads the traffic and does not alter it. The transport has to say who is
// asking.
//
// # Connections
//
// A connection is TLS 1.3 with certificates on both sides, and ALPN names what runs on it:
// [ALPNRaft] or [ALPNPeer]. In TLS 1.3 a client is done before the server has looked at its
// certificate, so the server's first byte is 0x01, sent when it has admitted the client,
// and the client sends nothing before it. So the dialer learns why it was refused: the alert arrives
// while the connection is made, and not at a later read, or never.
//
// Both ends cut a connection off when the first certificate of its chains expires, and when a recheck finds that the
// present CAs no longer vouch for the other end.
//
// # Limits
//
//	port.go      handshakes under way, in all and from one address; connections, in all, of one
//	             server, and of non-members
//	refuse.go    refusals that are reported one by one
//	server.go    the size of a request and of its header, and the time for both
//	limit.go     how many long bodies of one server are read at a time
//	frame.go     the size and form of what raft reads, and how slowly it may come
package peer
