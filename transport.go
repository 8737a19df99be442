package keyring

// Transport, and how requests go to the other servers.

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// Transport carries opaque requests between the servers of the raft configuration, at most
// 1 MiB each way. It authenticates both ends and hands a request to ServePeer on the server
// it is for. Key material inside is sealed to the asker; the Transport keeps out those who
// would alter it. It is called from several goroutines, and ctx always has a deadline.
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
// The examples do all of it: over net/http, with raft on the same port, and over net/rpc.
type Transport interface {
	Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error)
}

// callTimeout is for one request to one server, but see confirmTimeout.
const callTimeout = 2 * time.Second

// send carries a request to another server, for Keyring.peers.
func (s *server) send(ctx context.Context, to string, request []byte) ([]byte, error) {
	return s.sendWithin(ctx, callTimeout, to, request)
}

func (s *server) sendWithin(ctx context.Context, timeout time.Duration, to string, request []byte) ([]byte, error) {
	if s.cfg.Transport == nil {
		return nil, errors.New("there is no Transport")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.cfg.Transport.Call(ctx, raft.ServerID(to), request)
}

// servers returns the IDs of the latest raft configuration, in its order.
func servers(r *raft.Raft) []string {
	var ids []string
	for _, s := range r.GetConfiguration().Configuration().Servers {
		ids = append(ids, string(s.ID))
	}
	return ids
}

// currentVoters returns those of them that vote.
func currentVoters(r *raft.Raft) []string {
	return votersOf(r.GetConfiguration().Configuration().Servers)
}

func votersOf(servers []raft.Server) []string {
	var ids []string
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
