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

// Transport carries opaque requests between the servers of the raft configuration, at most 1 MiB each way. It
// authenticates both ends, and passes a request to ServePeer on the server that it is for. Key material in a
// request is encrypted to the server that asks; the Transport must keep out those who would alter it. It is
// called from several goroutines, and ctx always has a deadline. A call that does not return when ctx has
// ended blocks its caller, and is a ProblemHost after 10 seconds.
//
// Anyone who can pose as a server of the raft configuration gets every key. So a host must
//
//   - authenticate both ends before it parses or sends a byte of a request: [ServerTLS] and [ClientTLS] do
//     that. Use them in this process, not in a proxy in front of it;
//   - take the ID for ServePeer from the certificate alone, with [PeerID];
//   - set a deadline for each handshake, header, body and answer;
//   - limit the size of requests, answers and headers, and the number of connections;
//   - reject requests before Open has returned and after Close;
//   - follow no redirects, and send a request only to the server with that ID: pool connections by ID, not by
//     address;
//   - close connections, including those of raft and idle ones, when a certificate of either end has expired,
//     and when it replaces the CAs that vouched for them. [PeerID] checks the expiry for each request;
//   - close the connections of removed servers: ServePeer rejects each of their requests, raft does not;
//   - log who was rejected and why, and no bodies;
//   - do the same for raft's own transport, which accepts entries, snapshots and configurations from anyone
//     who connects: write a raft.StreamLayer over the same functions, with a protocol of its own.
//
// The examples do this over net/http with raft on the same port, and over net/rpc, except that they do not
// close open connections when a certificate expires or a CA is replaced. The module example.com/keyring/grpc
// is a ready Transport over gRPC, which does all of it.
type Transport interface {
	Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error)
}

// ServerTLS returns the TLS configuration for the listener of a host's own Transport, and for that of its
// raft. It does what a Node does at its port. It requires TLS 1.3 and a client certificate that chains to
// ClientCAs, is valid now and for client authentication, and has exactly one URI of the form
//
//	keyring://<cluster>/server/<id>
//
// in which the server's ID is escaped by url.PathEscape. It rejects any role other than server that the same
// CA may certify. The client must ask for one of the protocols by ALPN. Name at least one, and a different
// one for each service on the port; HTTP is "http/1.1". Then member is called with the ID in the certificate,
// and its error rejects the client. Sessions are not resumed, so each connection passes all these checks. The
// error that rejects a client is seen by the listener only, and names the certificate. The client gets an
// alert after its own handshake has ended.
//
// source returns Certificates or GetCertificate, and RootCAs, which is required, as [TLSFiles] does. If
// ClientCAs is nil, RootCAs is used. source is called at once, to find mistakes, and for each connection, so
// that certificates and CAs can be replaced. Its result is not modified. VerifyPeerCertificate and
// VerifyConnection of the result are called after all other checks, for example for revocation.
// CurvePreferences and KeyLogWriter are not used: post-quantum key exchanges are preferred, and nobody gets
// the session keys. cluster is 1 or more letters, digits, dots, dashes and underscores. No argument may be
// nil or empty.
//
// source and member are called concurrently, and must not block. member usually checks whether raft's latest
// configuration has the ID. On a server that is yet to be added that configuration is empty: then member must
// admit every server of the cluster, even one that was removed and still has its certificate. Before raft has
// started it must admit nobody.
//
// The configuration may be used for many listeners and connections, and must not be changed. It sets no
// deadline: set one for the handshake. See [Transport] for the other duties of a host.
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

// ClientTLS returns the TLS configuration for one connection to the server of that ID. It does what a Node
// does when it dials. It requires TLS 1.3 and a server certificate that chains to RootCAs, is valid now and
// for server authentication, and has the URI keyring://<cluster>/server/<id> of that very server in place of
// a host name. Both ends must agree on one of the protocols. source, cluster and protocols are as for
// [ServerTLS]; source may also set GetClientCertificate.
//
// Call it for each connection: it reads the certificates, and connections to different servers must share
// nothing. In an http.Transport use it in DialTLSContext, not as TLSClientConfig. Send nothing before the
// handshake has ended without an error. It is safe for concurrent use.
//
// In TLS 1.3 the handshake ends on this side before the server has checked this side's certificate: the first
// read returns the rejection.
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

// TLSFiles returns a source for [ServerTLS] and [ClientTLS], and for the TLS of packages port and node. It
// reads PEM files: this server's certificate with its chain, its private key, and the CAs that vouch for the
// other servers. The first two may be one file. Each call checks whether a file has changed, and then reads
// all three.
//
// An error names the file and contains none of its contents. Before the first success, source returns only
// the error. Later, when a file is gone, is being written, or has the key of another certificate, source
// returns the error together with the result of the last success. That stays in use for connections, and
// [Status] reports the error as a ProblemCertificate. Replace files by rename: then they are never read
// half-written.
func TLSFiles(certificate, key, cas string) func() (*tls.Config, error) {
	return peer.Files(certificate, key, cas)
}

// PeerID returns the ID to pass to [Keyring.ServePeer]: the ID of the server of the cluster which the
// client's certificate names. state is that of an accepted connection after its handshake; in a handler of
// net/http it is Request.TLS. It is an error if state is nil (no TLS), if the handshake has not succeeded, if
// no chain was verified, or if the certificate is not that of a server of the cluster.
//
// It is also an error if the certificate, or one in its chain, has expired since by this machine's clock. So
// call it for each request, not only for each connection. It does not check whether the server is a member;
// ServePeer does. It does not check either whether the CA still vouches for the certificate. So when CAs are
// replaced or a certificate is revoked, the host must close its connections, including idle ones and those of
// raft. When a certificate of either end has expired, the host must close raft's connections and those that
// it has dialled. A dialled connection has the ID that was given to [ClientTLS], and no verified chain in its
// state.
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
		return "", fmt.Errorf("peer ID: the certificate of %s expired at %v", id, inUTC(end))
	}
	return raft.ServerID(id.ID), nil
}
