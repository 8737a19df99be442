// Package keyringgrpc carries the calls between the servers of a keyring over gRPC, for a host that has a
// raft of its own and a grpc.Server. One port is enough for the keyring, for raft and for the host's clients.
//
// The package is not named grpc because every file that makes a grpc.Server imports that package too.
//
// Make a [Peers] first. It has the options for the grpc.Server and the connections for raft, and it is the
// Transport of the keyring:
//
//	peers, err := keyringgrpc.New(keyringgrpc.Config{
//		ID: "s1", Cluster: "prod", Addr: "10.0.0.1:7900", TLS: keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
//	})
//	if err != nil {
//		return err
//	}
//	server := grpc.NewServer(peers.ServerOptions()...)
//	peers.Register(server) // beside the host's own services
//	go server.Serve(listener)
//	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
//		Stream: peers.StreamLayer(), MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second,
//	})
//	fsm := keyring.NewFSM()
//	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), logs, stable, snapshots, transport)
//	if err != nil {
//		return err
//	}
//	keys, err := peers.Open(ctx, keyring.Config{Dir: dir, Raft: r, FSM: fsm, KEKs: []keyring.KEK{kek}})
//
// Shut down in this order: Keyring.Close, raft's Shutdown, [Peers.Close], the server's Stop. The example does
// all of it, and examples/watchmap is a complete service, with the endpoints for operators. A host whose
// services need its raft calls Serve last, as that example does: nothing before waits for another server.
//
// A new server starts raft without bootstrapping it. On the leader [keyring.Keyring.AddServer] adds it, and
// it gets its vote once it holds every key; the host does not call PromoteServers.
//
// # Who may call what
//
// This package does the TLS, with [keyring.ServerTLS] and [keyring.ClientTLS]. Config.TLS returns a
// certificate that names the server, keyring://<cluster>/server/<id>, and the CAs. ALPN, in the handshake,
// decides what a connection is for:
//
//	keyring-grpc/1       gRPC between servers. The certificate must be that of a member
//	keyring-grpc-raft/1  raft between servers. These connections leave the grpc.Server after the handshake
//	h2                   gRPC of clients, if Config.Clients is set, which says which certificates they need, if any. Services
//	                     find them in a credentials.TLSInfo, as usual
//
// A server whose raft is empty when it is opened, because it is yet to be added, can't know the members
// before it has caught up with the cluster. Until then it begins no election, and admits every server of the
// cluster, even one that was removed and still has its certificate. Revoke such certificates in the hooks of
// Config.TLS before you add servers. If the new server stops before it has caught up, delete raft's log and
// snapshots there before it starts again: they may name it as the only voter.
//
// So a client never gets a connection on which the keyring's service answers, whatever its certificate. That
// service also rejects connections that were made in another way, such as with another server's credentials.
// A host's own services decide for themselves:
//
//   - [Peers.PeerID] returns the member that has made a call;
//   - services named in [Peers.ServerOptions] answer members alone;
//   - [Peers.Conn] calls the services of another server, such as the leader, over the keyring's connection.
//
// # What crosses
//
// There is one service, [ServiceName], with one method, Call: a google.protobuf.BytesValue each way, of at
// most 1 MiB. No code is generated. The server handles it as a stream, whose bytes are those of a unary call,
// so that the host's unary interceptors do not see it. Its stream interceptors do; an interceptor that
// demands a token from each caller must let this service pass. The status codes are:
//
//	Unauthenticated    the call did not come over a connection of a server of the cluster, or its certificate has expired
//	Unavailable        the keyring is not open yet, or closed; or the server can't be reached
//	ResourceExhausted  the request or the answer is longer than 1 MiB, or the server has too many calls at a time
//	DeadlineExceeded   the context's deadline has passed, or 30 seconds on the server
//
// Raft does not use gRPC streams: a raft.StreamLayer is a net.Conn with deadlines, and a snapshot should not
// share flow control with heartbeats. But it uses the same port. A host whose raft has a gRPC transport from
// another module keeps it: that module dials with [Peers.DialOptions], and ServerOptions gets the name of its
// service. The requests of members to raft are not checked: members are trusted, as with every key. The
// transport of package port does check them.
//
// # Limits
//
//	handshakes             128 at a time, each for 10 seconds; then the oldest one of the address with the most is closed
//	connections            of one server 8 for calls and 8 for raft, then the oldest one is closed; of clients Config.MaxClients
//	calls of one server    32 at a time; the others wait. 10 seconds for the request to arrive, 30 for the whole call
//	calls of clients too   256 on one connection, each with a header of 8 KiB, unless the host's options say otherwise
//
// Connections between servers end within 5 seconds after a certificate of either end has expired, after the
// CAs or the hooks of Config.TLS have rejected the other end, after the other server has got another address,
// and after it has stopped being a member. New certificates are used from the next connection on.
package keyringgrpc
