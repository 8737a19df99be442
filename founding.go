package keyring

import (
	"context"
	"encoding/json"
	"errors"
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
		addr, _ := w.node.raft.LeaderWithID()
		g = greeting{Founded: w.node.raft.LastIndex() > 1, Leader: string(addr), Addr: w.node.cfg.Addr}
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
	others := map[string]string{} // ID by address
	for _, addr := range w.node.cfg.Join {
		others[addr] = peer.AnyServer
	}
	for id, addr := range w.node.cfg.Peers {
		if id != w.node.cfg.ID {
			others[addr] = string(id)
		}
	}
	for {
		silent, founded := w.survey(ctx, others)
		if founded {
			w.join = slices.Sorted(maps.Keys(others)) // whoever of them answers
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

// survey asks each server what it is. It returns the addresses of those that did not answer
// and whether one of them has a founded cluster.
func (w *network) survey(ctx context.Context, others map[string]string) (silent []string, founded bool) {
	addrs := slices.Sorted(maps.Keys(others))
	answers := askAll(ctx, addrs, func(ctx context.Context, addr string) (greeting, error) {
		return w.greet(ctx, others[addr], addr, nil)
	}, nil)
	for _, addr := range addrs {
		if g, ok := answers[addr]; !ok {
			silent = append(silent, addr)
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

// joining is what a server asks that has no raft log.
type joining struct {
	Addr  string `json:"addr" bound:"bytes=1024"`
	Token string `json:"token,omitempty" bound:"bytes=1024"`
}

// joined is the answer: who is in the configuration that took it in.
type joined struct {
	Servers []string `json:"servers" bound:"elements=4096,bytes=255"`
}

var (
	joiningType = bounded.For[joining](peer.MaxMessage)
	joinedType  = bounded.For[joined](peer.MaxMessage)
)

// askToJoin asks the cluster to take this server in, until it has. It comes before raft is
// started: until the cluster has taken out the voter that this server may have been, it must
// not be able to vote.
func (w *network) askToJoin(ctx context.Context) error {
	body, err := json.Marshal(joining{w.node.cfg.Addr, w.node.cfg.JoinToken})
	if err != nil {
		return err
	}
	for {
		var errs []error
		for _, addr := range w.join {
			if err := w.askLeader(ctx, addr, body); err != nil {
				errs = append(errs, err)
				continue
			}
			return nil
		}
		w.node.log.Info("asking to join", "error", errors.Join(errs...))
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			return fmt.Errorf("join: %w: %w", context.Cause(ctx), errors.Join(errs...))
		}
	}
}

// askLeader asks the leader that the server at addr knows of.
func (w *network) askLeader(ctx context.Context, addr string, body []byte) error {
	g, err := w.greet(ctx, peer.AnyServer, addr, nil)
	if err != nil {
		return err
	}
	if g.Leader == "" {
		return fmt.Errorf("%s knows of no leader", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	b, err := w.client.Call(ctx, peer.AnyServer, g.Leader, pathJoin, body)
	if r := (*peer.Refusal)(nil); errors.As(err, &r) && r.Code == peer.NotMember {
		return fmt.Errorf("%w: the cluster has no server of this name; it needs a JoinToken, or AddServer there", err)
	}
	if err == nil {
		b, err = answered(b)
	}
	if err != nil {
		return err
	}
	j, err := joinedType.DecodeKnown(b)
	if err != nil {
		return fmt.Errorf("join: the leader's answer: %w", err)
	}
	w.sponsors = j.Servers
	return nil
}
