package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// silenceTimeout is how long a server may take to answer before it counts as gone.
const silenceTimeout = 3 * time.Second

// Named returns the servers that the configuration names, by address, the ID empty where it is not known.
func (c Config) Named() map[string]raft.ServerID {
	others := map[string]raft.ServerID{}
	for _, k := range c.candidates() {
		others[k.Addr] = raft.ServerID(k.ID)
	}
	return others
}

// OthersSilent is an error if something answers at one of these addresses: then their cluster lives on, and there must
// not be another. It does not ask at this server's own address, where nothing listens yet. A server with this server's
// own ID is asked too: it may be the one whose place this server is to take. A server with an empty
// directory that waits for a cluster is none. Anything else at the address counts: a server whose
// certificate can't be checked has a log and a vote all the same.
func (c Config) OthersSilent(ctx context.Context, others map[string]raft.ServerID) error {
	if c.Addr == "" {
		return nil
	}
	others = maps.Clone(others)
	delete(others, c.Addr)
	ctx, cancel := context.WithTimeoutCause(ctx, silenceTimeout, errSilent)
	defer cancel()
	answers := peer.All(ctx, slices.Sorted(maps.Keys(others)), func(ctx context.Context, addr string) (string, error) {
		return c.whatAnswers(ctx, others[addr], addr)
	}, nil)
	var errs []error
	for _, addr := range slices.Sorted(maps.Keys(answers)) {
		errs = append(errs, fmt.Errorf("%s: its cluster still runs, and there must not be two; if the cluster is gone, stop that server or set Force", answers[addr]))
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, errSilent) {
		return err
	}
	return errors.Join(errs...)
}

var errSilent = errors.New("no answer")

// whatAnswers says what answers at the address, or returns an error if nothing does that could belong to a cluster.
func (c Config) whatAnswers(ctx context.Context, id raft.ServerID, addr string) (string, error) {
	var connected atomic.Bool
	client := peer.NewClient(&peer.Dialer{
		Cluster: c.Cluster, TLS: c.TLS,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				connected.Store(true)
			}
			return conn, err
		},
	})
	defer client.Close()
	a, err := port.HelloOf(ctx, client, id, addr)
	if err == nil && !a.Bootstrapped {
		return "", errSilent
	}
	name := fmt.Sprintf("server %q at %s", id, addr)
	if id == peer.AnyServer {
		name = "a server at " + addr
	}
	switch {
	case err == nil:
		return name + " answers", nil
	case port.IsRefusal(err):
		return name + " answers that it starts", nil
	case connected.Load():
		return fmt.Sprintf("%s is there, but did not say what it is (%v)", name, err), nil
	}
	return "", err
}
