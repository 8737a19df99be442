package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// greeting is what a server tells one that has no raft log.
type greeting struct {
	Founded bool   `json:"founded"`          // its cluster has committed something
	Leader  string `json:"leader,omitempty"` // the address of the leader it knows of
}

const joinRetry = 250 * time.Millisecond // until servers that did not answer are asked again

// hello says whether this server belongs to a cluster that has begun to work, going by what
// is in its log: more than the configuration it was founded with. While it reads its disk it
// does not know, and says so.
func (w *network) hello() ([]byte, error) {
	var g greeting
	switch {
	case w.ready():
		addr, _ := w.node.raft.LeaderWithID()
		g = greeting{Founded: w.node.raft.LastIndex() > 1, Leader: string(addr)}
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
		return w.greet(ctx, others[addr], addr)
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

func (w *network) greet(ctx context.Context, id, addr string) (g greeting, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := w.client.Call(ctx, id, addr, pathHello, nil)
	if err != nil {
		w.node.log.Debug("hello", "addr", addr, "error", err)
		return g, err
	}
	return g, json.Unmarshal(b, &g)
}

// joining is what a server asks that has no raft log.
type joining struct {
	Addr string `json:"addr"`
}

// askToJoin asks the cluster to take this server in, until it has. It comes before raft is
// started: until the cluster has taken out the voter that this server may have been, it must
// not be able to vote.
func (w *network) askToJoin(ctx context.Context) error {
	body, err := json.Marshal(joining{w.node.cfg.Addr})
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
	g, err := w.greet(ctx, peer.AnyServer, addr)
	if err != nil {
		return err
	}
	if g.Leader == "" {
		return fmt.Errorf("%s knows of no leader", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	_, err = w.client.Call(ctx, peer.AnyServer, g.Leader, pathJoin, body)
	return err
}

// joinTimeout covers the live question and two changes of the configuration.
const joinTimeout = 10 * time.Second

// serveJoin takes a server without a raft log into the configuration, as a non-voter. If it
// was a member under its ID before, it is taken out first: raft forbids a voter to come back
// having forgotten its votes.
func (w *network) serveJoin(ctx context.Context, from peer.Identity, body []byte) ([]byte, error) {
	var j joining
	if err := json.Unmarshal(body, &j); err != nil || j.Addr == "" || len(j.Addr) > meta.MaxServerID {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	n := w.node
	if from.ID == string(n.cfg.ID) {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	if n.raft.State() != raft.Leader {
		_, leader := n.raft.LeaderWithID()
		return nil, &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	if err := w.checkGone(ctx, from.ID); err != nil {
		return nil, err
	}
	err := n.keys.alongActivations(ctx, func(ctx context.Context) error {
		if err := n.expel(ctx, raft.ServerID(from.ID)); err != nil {
			return err
		}
		n.log.Info("server joins", "id", from.ID, "addr", j.Addr)
		return n.raft.AddNonvoter(raft.ServerID(from.ID), raft.ServerAddress(j.Addr), 0, proposeTimeout).Error()
	})
	if err != nil {
		return nil, fmt.Errorf("join of %s: %w", from.ID, err)
	}
	return nil, nil
}

// checkGone refuses a join under the ID of a member that is alive: somebody has started a
// second server with the first one's certificate.
func (w *network) checkGone(ctx context.Context, id string) error {
	for _, s := range w.node.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) != id {
			continue
		}
		if g, err := w.greet(ctx, id, string(s.Address)); err == nil && g.Founded {
			return fmt.Errorf("join of %s: it is a member already, and answers at %s", id, s.Address)
		}
	}
	return nil
}

// expel takes a server out of the configuration if it is in it and no key is put at risk.
func (n *Node) expel(ctx context.Context, id raft.ServerID) error {
	var remain []raft.ServerID
	found := false
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.ID == id {
			found = true
		} else if s.Suffrage == raft.Voter {
			remain = append(remain, s.ID)
		}
	}
	if !found {
		return nil
	}
	if err := n.keys.CheckMembers(ctx, remain); err != nil {
		return err
	}
	if err := n.raft.RemoveServer(id, 0, proposeTimeout).Error(); err != nil {
		return err
	}
	// It comes back with another keystore: what is recorded of the old one would let it vote
	// before it holds a key.
	if _, known := n.keys.fsm.ring.Load().Keystore(string(id)); !known {
		return nil
	}
	return propose(ctx, n.raft, meta.Command{Forget: &meta.Forget{Servers: []string{string(id)}}})
}

// promote makes non-voters voters, on the leader, once they hold every key. It runs until
// Close.
func (n *Node) promote(ctx context.Context) {
	for tries := 0; ; {
		changed := n.keys.fsm.changed.wait()
		retry, err := n.promoteOne(ctx)
		if tries++; err == nil {
			tries = 0
		} else { // asking has changed something by itself: it is no reason to ask again
			changed, retry = nil, time.After(plan.Backoff(tries+2, rand.Float64()))
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// promoteOne makes a voter of one server that has what it takes, and returns a channel that
// fires when there may be another one. The error is that of the attempt.
func (n *Node) promoteOne(ctx context.Context) (<-chan time.Time, error) {
	if n.raft.State() != raft.Leader {
		n.keys.blocked.vote(nil)
		return nil, nil
	}
	var voters []raft.ServerID
	var candidate *raft.Server
	waiting := map[raft.ServerID]string{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		switch lacks := n.lacks(string(s.ID)); {
		case s.Suffrage == raft.Voter:
			voters = append(voters, s.ID)
		case lacks == 0 && candidate == nil:
			candidate = &s
		default:
			waiting[s.ID] = fmt.Sprintf("it lacks %d keys", lacks)
		}
	}
	n.keys.blocked.vote(waiting)
	if candidate == nil {
		if len(waiting) > 0 {
			return time.After(time.Second), nil
		}
		return nil, nil
	}
	err := n.keys.alongActivations(ctx, func(ctx context.Context) error {
		if err := n.confirmAll(ctx, string(candidate.ID)); err != nil {
			return err
		}
		if err := n.keys.CheckMembers(ctx, append(voters, candidate.ID)); err != nil {
			return err
		}
		n.log.Info("server becomes a voter", "id", candidate.ID)
		return n.raft.AddVoter(candidate.ID, candidate.Address, 0, proposeTimeout).Error()
	})
	if err != nil {
		waiting[candidate.ID] = err.Error()
		n.keys.blocked.vote(waiting)
		n.log.Warn("promote", "id", candidate.ID, "error", err)
	}
	return time.After(0), err
}

// confirmAll asks the server live whether it holds every key, with the keystore that is
// recorded.
func (n *Node) confirmAll(ctx context.Context, server string) error {
	ring := n.keys.fsm.ring.Load()
	a := n.keys.askAbout(ctx, []string{server}, ring.Keys)[server]
	recorded, _ := ring.Keystore(server)
	if len(ring.Keys) > 0 && (a.Keystore != recorded || len(a.Held) < len(ring.Keys)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(ring.Keys))
	}
	return nil
}

// lacks counts the keys of which the server is not a recorded holder.
func (n *Node) lacks(server string) (keys int) {
	for _, k := range n.keys.fsm.ring.Load().Keys {
		if !k.HeldBy(server) {
			keys++
		}
	}
	return keys
}
