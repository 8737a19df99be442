package keyring

// What the builds of the servers apply: nothing else is proposed.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// allApply returns no error if every server of the raft configuration says, now, that it applies
// version v of log entries. Nothing is remembered: a server may come back with an older build. One
// that joins afterwards is not asked.
func (s *server) allApply(ctx context.Context, v int) error {
	asked := servers(s.raft)
	if behind := behind(asked, s.hellos(ctx, asked), v); len(behind) > 0 {
		return behindError{v, behind}
	}
	if !slices.Equal(asked, servers(s.raft)) {
		return errors.New("the raft configuration has changed while its servers were asked for their builds")
	}
	return nil
}

// hellos asks servers what they are. Those that do not answer are not among the answers.
func (s *server) hellos(ctx context.Context, servers []string) map[string]*peer.Hello {
	answers := s.helloEach(ctx, servers)
	maps.DeleteFunc(answers, func(_ string, h *peer.Hello) bool { return h == nil })
	return answers
}

// helloEach asks servers what they are. Those that are not ready to say so have nil for an answer, and those
// that do not answer have none.
func (s *server) helloEach(ctx context.Context, servers []string) map[string]*peer.Hello {
	return peer.All(ctx, servers, func(ctx context.Context, server string) (*peer.Hello, error) {
		if server == string(s.cfg.ID) {
			return s.hello(), nil
		}
		h, err := s.peers.HelloWaiting(ctx, server)
		if peer.Refused(err, peer.NotReady) {
			return nil, nil
		}
		return h, err
	}, nil)
}

// behind returns the servers that have not said that they apply version v, each with what it did.
func behind(servers []string, answers map[string]*peer.Hello, v int) map[raft.ServerID]string {
	out := map[raft.ServerID]string{}
	for _, s := range servers {
		switch a := answers[s]; {
		case a == nil:
			out[raft.ServerID(s)] = silent
		case a.Build < v:
			out[raft.ServerID(s)] = fmt.Sprintf("applies log entries up to version %d, and not version %d", a.Build, v)
		}
	}
	return out
}

// behindError says that some servers are not known to apply what was to be proposed.
type behindError struct {
	version int
	servers map[raft.ServerID]string // and why
}

func (e behindError) Error() string {
	var all []string
	for _, s := range slices.Sorted(maps.Keys(e.servers)) {
		all = append(all, string(s)+" "+e.servers[s])
	}
	return fmt.Sprintf("not every server applies version %d of log entries: %s", e.version, strings.Join(all, "; "))
}

// silent is why a server is not known to apply anything.
const silent = "has not answered"

// allSilent reports whether none of them has said that it does not apply the version.
func (e behindError) allSilent() bool {
	for _, why := range e.servers {
		if why != silent {
			return false
		}
	}
	return true
}
