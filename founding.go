package keyring

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/peer"
)

// greeting is what a server tells one that has no raft log.
type greeting struct {
	Founded bool   `json:"founded"`                             // its cluster has committed something
	Leader  string `json:"leader,omitempty" bound:"bytes=1024"` // the address of the leader it knows of
	Addr    string `json:"addr,omitempty" bound:"bytes=1024"`   // its own, by its configuration

	LeaderID string `json:"leaderID,omitempty" bound:"bytes=255"` // which server leads; older builds do not say
}

var greetingType = bounded.For[greeting](peer.MaxMessage)

const joinRetry = 250 * time.Millisecond // until servers that did not answer are asked again

// hello says whether this server belongs to a cluster that has begun to work, going by what
// is in its log: more than the configuration it was founded with. While it reads its disk it
// does not know, and says so.
func (w *network) hello() ([]byte, error) {
	var g greeting
	switch {
	case w.ready():
		addr, leader := w.node.raft.LeaderWithID()
		g = greeting{Founded: w.node.raft.LastIndex() > 1, Leader: string(addr), Addr: w.node.cfg.Addr, LeaderID: string(leader)}
	case !w.fresh.Load():
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	return json.Marshal(g)
}

// founding asks the other servers until it knows whether the cluster is to be founded, or
// exists and is to be joined. All founders have to answer before it is: a server that does
// not answer may be one whose cluster lives on.
func (w *network) founding(ctx context.Context) (bool, error) {
	w.fresh.Store(true)
	if err := w.node.cfg.provable(); err != nil {
		return false, err
	}
	others := w.node.cfg.candidates()
	for {
		silent, founded := w.survey(ctx, others)
		if founded {
			w.join = others // whoever of them answers
			return false, nil
		}
		if len(silent) == 0 && len(w.node.cfg.Peers) > 0 {
			return true, nil
		}
		w.node.log.Info("waiting for the other servers", "silent", silent)
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			return false, fmt.Errorf("found or join a cluster: %w: waiting for %q", context.Cause(ctx), silent)
		}
	}
}

// survey asks each server what it is. It returns those that did not answer and whether one of them has a
// founded cluster.
func (w *network) survey(ctx context.Context, others []candidate) (silent []string, founded bool) {
	byName := map[string]candidate{}
	for _, c := range others {
		byName[c.String()] = c
	}
	names := slices.Sorted(maps.Keys(byName))
	answers := askAll(ctx, names, func(ctx context.Context, name string) (greeting, error) {
		return w.greet(ctx, byName[name].id, byName[name].addr, nil)
	}, nil)
	for _, name := range names {
		if g, ok := answers[name]; !ok {
			silent = append(silent, name)
		} else if g.Founded {
			founded = true
		}
	}
	return silent, founded
}

// greet asks a server what it is.
func (w *network) greet(ctx context.Context, id, addr string, body []byte) (g greeting, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := w.client.Call(ctx, id, addr, pathHello, body)
	if err != nil {
		w.node.log.Debug("hello", "addr", addr, "error", err)
		return g, err
	}
	if g, err = greetingType.DecodeKnown(b); err != nil {
		return g, fmt.Errorf("hello of %s: the answer: %w", addr, err)
	}
	return g, nil
}
