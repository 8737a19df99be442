// Package port gives each server of a host with a raft of its own one port, on which raft and the keyring
// talk to the other servers. It is the port of a Node: the host writes no code for TLS, limits or membership
// checks.
//
//	keys := keyring.NewFSM()
//	p, err := port.Listen(port.Config{
//		ID: "s1", Cluster: "prod", Addr: "10.0.0.1:7900", TLS: keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
//	})
//	if err != nil {
//		return err
//	}
//	r, err := raft.NewRaft(conf, keyring.Mux(keys, app), logs, stable, snapshots, p.RaftTransport(logs, keys))
//	if err != nil {
//		return errors.Join(err, p.Close())
//	}
//	k, err := p.Open(ctx, keyring.Config{Dir: dir, Raft: r, FSM: keys, KEKs: []keyring.KEK{kek}})
//
// At the end close the keyring, then shut raft down, then close the port. The example does all of it.
//
// A server that is to join a cluster calls [Port.Join] before raft is started. Calls of the host's own
// between its servers, such as those that forward a write to the leader, go over the same port: see
// [Port.Handle] and [Port.Request].
//
// A host that has a port and a protocol of its own uses [keyring.ServerTLS], [keyring.ClientTLS],
// [keyring.PeerID] and [keyring.Keyring.ServePeer] in place of this package; one that has a grpc.Server, the
// module grpc. docs/embedding.md of the repository says more.
//
// # Who is admitted
//
// A connection uses TLS 1.3 with certificates on both ends. Each certificate has one URI of the form
// keyring://<cluster>/server/<id>, and is for both server and client authentication; the ID is that of the
// raft configuration. Before a byte reaches raft or the keyring, both ends have checked the other's
// certificate. For raft they have also checked that the other server is in the raft configuration; the
// keyring checks that in each call.
//
// When a server is removed, its connections are closed, in both directions. When a certificate expires or its
// CA is replaced, the connections that use it are closed too. Handshakes, connections and messages have
// limits. Non-members can't use up the limits of members.
package port
