package keyring

// How servers reach each other: Transport, ServePeer, and the TLS of a host with a raft of its own.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Transport carries opaque requests between the servers of the raft configuration, at most
// 1 MiB each way. It authenticates both ends and hands a request to ServePeer on the server
// it is for. Key material inside is sealed to the asker; the Transport keeps out those who
// would alter it. It is called from several goroutines, and ctx always has a deadline. A call that does not return when ctx
// has ended holds up what it was made for, and after 10 seconds is a ProblemHost.
//
// Anyone who can pose as a server of the raft configuration is given every key. So a host:
//
//   - has both ends authenticated before a byte of a request is parsed or sent: [ServerTLS] and
//     [ClientTLS] do that, in this process, not in a proxy before it;
//   - takes the ID for ServePeer from the certificate alone, with [PeerID];
//   - has a deadline for each handshake, header, body and answer;
//   - bounds requests, answers, headers, and the connections it accepts at a time;
//   - refuses until Open has returned, and after Close;
//   - follows no redirects, and sends a request to no server but the one of that ID: connections are
//     kept by ID, not by address;
//   - closes connections, raft's and idle ones too, when the certificates of either end have ended, and when it
//     replaces the CAs that vouched for them: [PeerID] refuses the former, for each request that it is asked about;
//   - has the connections of a server that was removed come to nothing: ServePeer refuses each of its
//     requests, raft does not;
//   - logs who was refused and why, and no bodies;
//   - does the same for raft's own transport, which takes entries, snapshots and configurations from
//     anyone who connects: a raft.StreamLayer over the same functions, with a protocol of its own.
//
// The examples do all of it: over net/http, with raft on the same port, and over net/rpc. The module example.com/keyring/grpc does it
// over gRPC, for a host to use as it is.
type Transport interface {
	Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error)
}

// ServerTLS returns a configuration for the listener of a host's own Transport, and for that of its
// raft. It does what a Node does at its port: TLS 1.3; a client certificate is required, has to
// chain to ClientCAs, to be valid now and for client authentication, and to have exactly one URI of
// the form
//
//	keyring://<cluster>/server/<id>
//
// with the ID of the server path-escaped, as url.PathEscape does. Any role other than server, which
// the same CA may certify, is refused. The client has to ask for one of the protocols by ALPN; name
// at least one, and a different one for each thing that runs on a port of yours: HTTP is "http/1.1".
// Then member is asked, with the ID in the certificate, and its error refuses. No session is resumed:
// each connection goes through all of that. The error that refuses goes to the listener's side alone
// and names the certificate; the client gets an alert, after its own handshake has ended.
//
// source returns Certificates or GetCertificate, and RootCAs, which is required, as that of [TLSFiles] does; ClientCAs nil means
// RootCAs. It is called at once, to find mistakes, and for each connection, so that certificates and
// CAs can be replaced; what it returns is not modified. Its VerifyPeerCertificate and
// VerifyConnection, for revocation say, are called after all else. Its CurvePreferences and KeyLogWriter are not used: key
// exchanges are post-quantum first, and nobody is told the keys. Cluster is 1 or more letters,
// digits, dots, dashes and underscores. Nothing may be nil or empty.
//
// source and member are called concurrently, and must not block. member, as a rule, is whether raft's
// latest configuration has the ID. While that is empty, on a server that is to be added, it has to
// admit every server of the cluster, also one that was removed and still has its certificate; before
// raft is there, nobody.
//
// The configuration may be used for many listeners and connections, and must not be changed. It is
// no deadline: set one for the handshake. See [Transport] for what else a host has to see to.
func ServerTLS(source func() (*tls.Config, error), cluster string, member func(raft.ServerID) error, protocols ...string) (*tls.Config, error) {
	if source == nil || member == nil {
		return nil, errors.New("server TLS: source or member is nil")
	}
	check := func(id peer.Identity, _ string) error { return member(raft.ServerID(id.ID)) }
	conf, err := peer.ServerConfig(source, cluster, check, protocols...)
	if err != nil {
		return nil, fmt.Errorf("server %w", err)
	}
	return conf, nil
}

// ClientTLS returns a configuration for one connection to the server of that ID. It does what a
// Node does when it dials: TLS 1.3; the certificate of the other side has to chain to RootCAs, to be
// valid now and for server authentication, and to have the URI keyring://<cluster>/server/<id> of that
// very server, which takes the place of a host name. One of the protocols has to be agreed on. Source,
// cluster and protocols are as for [ServerTLS]; GetClientCertificate may give the certificate too.
//
// Call it for each connection: it reads the certificates, and nothing of another server's may be
// reused. So in an http.Transport it belongs into DialTLSContext, not into TLSClientConfig. Nothing
// may be sent before the handshake has ended without an error. It is safe for concurrent use.
//
// In TLS 1.3 the handshake ends here before the server has looked at this side's certificate: that it
// refuses shows at the first read.
func ClientTLS(source func() (*tls.Config, error), cluster string, server raft.ServerID, protocols ...string) (*tls.Config, error) {
	if source == nil || server == "" {
		return nil, errors.New("client TLS: source is nil, or the server's ID is empty")
	}
	conf, err := peer.ClientConfig(source, cluster, string(server), protocols...)
	if err != nil {
		return nil, fmt.Errorf("client %w", err)
	}
	return conf, nil
}

// TLSFiles returns a source for [ServerTLS] and [ClientTLS], and for the TLS of packages port and node. It reads PEM
// files: this server's certificate with its chain, the private key of the certificate, and the CAs that vouch for the
// other servers. The first two may be one file. At each call it looks whether a file has changed, and then reads all
// three.
//
// An error names the file and has nothing of what is in it. Before all three could be read, it comes alone. After that, as
// when a file is gone, is being written, or has the key of another certificate, what was read last comes beside the
// error, and goes on to be used for connections; [Status] has the error as a ProblemCertificate. A file that is replaced by rename is
// never read while it is being written.
func TLSFiles(certificate, key, cas string) func() (*tls.Config, error) {
	return peer.Files(certificate, key, cas)
}

// PeerID returns the ID to pass to [Keyring.ServePeer]: that of the server of the cluster which the
// client's certificate names. state is that of an accepted connection after its handshake; in a
// handler of net/http it is Request.TLS. It is an error if state is nil, as it is without TLS, if the
// handshake has not succeeded, if no chain was verified, or if the certificate is not that of a server
// of the cluster.
//
// It is an error too when the certificate, or one that it chains to, has ended since, by the time of day here. So
// call it for each request, not only for each connection. It does not ask again whether the server is a member, which
// ServePeer does, nor whether the CA still vouches for it: when CAs are replaced, or a certificate is revoked, the
// host closes the connections that it has, idle ones too, and those of raft. It closes those of raft, and those that
// it has dialled, when the certificates of either end have ended. A dialled connection has the ID that was given to
// [ClientTLS], and no verified chain in its state.
func PeerID(state *tls.ConnectionState, cluster string) (raft.ServerID, error) {
	if state == nil {
		return "", errors.New("peer ID: not a TLS connection")
	}
	if !state.HandshakeComplete { // the chains are there before all checks have passed
		return "", errors.New("peer ID: the handshake has not ended")
	}
	id, err := peer.ServerOf(cluster, *state)
	if err != nil {
		return "", fmt.Errorf("peer ID: %w", err)
	}
	if end := peer.ChainsEnd(state.VerifiedChains); time.Now().After(end) {
		return "", fmt.Errorf("peer ID: the certificate of %s ended at %v", id, inUTC(end))
	}
	return raft.ServerID(id.ID), nil
}
