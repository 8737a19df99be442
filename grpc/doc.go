// Package keyringgrpc carries what the servers of a keyring say to each other over gRPC: for a host that has a raft of its own
// and a grpc.Server. One port is enough for the keyring, for raft and for the host's clients.
//
// It is not named grpc, for every file that makes a grpc.Server imports that package too.
//
// A [Peers] is made first. It has the options for the grpc.Server, the connections for raft, and it is the Transport of the
// keyring:
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
// It ends in this order: Keyring.Close, raft's Shutdown, [Peers.Close], the server's Stop. The example has all of it, and
// examples/watchmap is a service of its own, with what operators expect. A host whose services need its raft calls Serve last, as that
// does: nothing before waits for another server.
//
// A new server starts raft without bootstrapping it. On the leader [keyring.Keyring.AddServer] adds it, and it gets its vote
// once it holds every key; the host does not call PromoteServers.
//
// # Who may call what
//
// TLS is made in this package, with [keyring.ServerTLS] and [keyring.ClientTLS]: Config.TLS gives a certificate that names the
// server, keyring://<cluster>/server/<id>, and the CAs. What a connection is for is agreed on by ALPN, in the handshake:
//
//	keyring-grpc/1       gRPC between servers. The certificate has to be that of a server which is a member
//	keyring-grpc-raft/1  raft, between servers too. These connections leave the grpc.Server after the handshake
//	h2                   gRPC of clients, if Config.Clients is set, which says what certificates they need, if any. Services
//	                     find them in a credentials.TLSInfo, as ever
//
// A server whose raft has nothing when it is opened, for it is to be added, can't know the members before it has caught up with the
// cluster: until then it begins no election, and admits every server of the cluster, also one that was removed and has its
// certificate still. Revoke that, in the hooks of Config.TLS, before you add servers. If such a server ends before it has caught
// up, delete raft's log and snapshots there before it starts again: what it has may name it as the only voter.
//
// So a client gets no connection on which the keyring's service answers, whatever its certificate, and this service refuses a
// connection that was made in another way, such as with another server's credentials. A host's own services decide by themselves:
// [Peers.PeerID] tells which member has made a call, those that are named in [Peers.ServerOptions] answer members alone, and
// [Peers.Conn] calls the services of another server, such as the leader's, over the connection that the keyring uses.
//
// # What crosses
//
// One service, [ServiceName], with one method, Call: a google.protobuf.BytesValue each way, of at most 1 MiB. No code is generated.
// The server takes it as a stream, which has the same bytes as a unary call, so that the host's unary interceptors do not get
// to see it. Its stream interceptors do; one that wants a token of each caller has to let this service pass. The status codes are:
//
//	Unauthenticated    the call has not come over a connection of a server of the cluster, or its certificate has ended
//	Unavailable        the keyring is not open yet, or closed; or the server is not reached
//	ResourceExhausted  the request or the answer is longer than 1 MiB, or the server has too many calls at a time
//	DeadlineExceeded   the context's deadline has passed, or 30 seconds on the server
//
// Raft does not run over gRPC's streams: a raft.StreamLayer is a net.Conn with deadlines, and a snapshot should not share flow
// control with heartbeats. The port is the same. A host whose raft has a gRPC transport of another module keeps it: that module dials with
// [Peers.DialOptions], and the name of its service is given to ServerOptions. What members send to raft is not looked at: they are
// trusted with that, as with every key. The transport of package port does look at it.
//
// # Limits
//
//	handshakes under way   128, each for 10 seconds; the oldest of the address that has most gives way
//	connections            of one server 8 for calls and 8 for raft, where the oldest gives way; of clients Config.MaxClients
//	calls of one server    32 at a time; the others wait. 10 seconds for a request to come, 30 for all of a call
//	calls of clients too   256 on one connection, each with a header of 8 KiB, unless the host's options say otherwise
//
// Connections between servers end within 5 seconds after a certificate of either end has ended, after the CAs, or the hooks of
// Config.TLS, refuse the other end, when the other server has another address, and when it is no member any more. New certificates
// are used from the next connection on.
package keyringgrpc
