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
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// greeting is what a server tells one that has no raft log.
type greeting struct {
	Founded bool   `json:"founded"`                             // its cluster has committed something
	Leader  string `json:"leader,omitempty" bound:"bytes=1024"` // the address of the leader it knows of
	Addr    string `json:"addr,omitempty" bound:"bytes=1024"`   // its own, by its configuration

	LeaderID string `json:"leaderID,omitempty" bound:"bytes=255"` // which server leads; older builds do not say

	// Founders are the servers that are to found the cluster, each as id@address, sorted, from one that has not
	// been told of a founded one. Older builds do not say.
	Founders []string `json:"founders,omitempty" bound:"elements=1024,bytes=2048"`
	Logged   bool     `json:"logged,omitempty"` // Founders are in its raft log. Older builds do not say
}

// founders is what a server that is to found a cluster says with its question: which ones are to. An older
// build does not look at it.
type founders struct {
	Founders []string `json:"founders" bound:"elements=1024,bytes=2048"`
}

var (
	greetingType = bounded.For[greeting](peer.MaxMessage)
	foundersType = bounded.For[founders](peer.MaxMessage)
)

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
		if !g.Founded {
			g.Founders, g.Logged = foundersOf(w.node.raft.GetConfiguration().Configuration().Servers), true
		}
	case !w.fresh.Load():
		return nil, &peer.Refusal{Code: peer.NotReady}
	default:
		g.Founders = foundersOf(w.node.cfg.founders().Servers)
	}
	return json.Marshal(g)
}

// founding asks the other servers until it knows whether the cluster is to be founded, or
// exists and is to be joined. All founders have to answer before it is: a server that does
// not answer may be one whose cluster lives on. And all have to name the same founders: each writes them
// into its own log, and two that differ there would both report success. It waits until they do: an operator who
// corrects Peers on one server need not start the others again.
func (w *network) founding(ctx context.Context) (bool, error) {
	w.fresh.Store(true)
	if err := w.node.cfg.provable(); err != nil {
		return false, err
	}
	others, said, told := w.node.cfg.candidates(), "", mono.Time(0)
	for {
		silent, founded, differs, err := w.survey(ctx, others)
		if founded {
			w.join = others // whoever of them answers
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if len(silent) == 0 && differs == nil && len(w.node.cfg.Peers) > 0 {
			return true, nil
		}
		if differs != nil && (differs.Error() != said || mono.Now().Sub(told) >= time.Minute) {
			said, told = differs.Error(), mono.Now()
			w.node.log.Error("the cluster is not founded yet", "error", differs)
		}
		w.node.log.Info("waiting for the other servers", "silent", silent)
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			err := fmt.Errorf("found or join a cluster: %w: waiting for %q", context.Cause(ctx), silent)
			return false, errors.Join(err, differs)
		}
	}
}

// survey asks each server what it is. It returns those that did not answer, whether one of them has a
// founded cluster, and in differs an error if one names other founders than this server.
func (w *network) survey(ctx context.Context, others []cluster.Candidate) (silent []string, founded bool, differs, err error) {
	byName := map[string]cluster.Candidate{}
	for _, c := range others {
		byName[c.String()] = c
	}
	names := slices.Sorted(maps.Keys(byName))
	own := foundersOf(w.node.cfg.founders().Servers)
	body, err := json.Marshal(founders{own})
	if err != nil {
		return nil, false, nil, err
	}
	answers := peer.All(ctx, names, func(ctx context.Context, name string) (greeting, error) {
		return w.greet(ctx, byName[name], body)
	}, nil)
	var errs []error
	heard := map[raft.ServerID]bool{}
	for _, name := range names {
		g, ok := answers[name]
		if !ok {
			silent = append(silent, name)
			continue
		}
		founded = founded || g.Founded
		heard[raft.ServerID(byName[name].ID)] = len(g.Founders) > 0
		errs = append(errs, differ(own, name, g))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.founders)) {
		if !heard[id] { // what it answers now is later than what it asked with
			errs = append(errs, differ(own, string(id), greeting{Founders: w.founders[id]}))
		}
	}
	return silent, founded, errors.Join(errs...), nil
}

// foundersOf is servers as they are compared.
func foundersOf(servers []raft.Server) (all []string) {
	for _, s := range servers {
		all = append(all, cluster.Candidate{ID: string(s.ID), Addr: string(s.Address)}.String())
	}
	slices.Sort(all)
	return all
}

// differ is an error if both lists are known and are not the same.
func differ(own []string, name string, g greeting) error {
	if len(own) == 0 || len(g.Founders) == 0 || slices.Equal(own, g.Founders) {
		return nil
	}
	err := fmt.Errorf("found the cluster: Peers must be the same on each server, and are %q here and %q on %s", own, g.Founders, name)
	if g.Logged {
		return fmt.Errorf("%w, in its raft log, whatever its Peers are now: if no server has committed anything, stop it, delete the directory raft in its Dir, and start it again", err)
	}
	return err
}

// noteFounders remembers whom one of this server's founders names, which asks because it is to found the cluster
// too. It may have given up by the time it is asked itself.
func (w *network) noteFounders(from raft.ServerID, body []byte) {
	if _, founder := w.node.cfg.Peers[from]; !founder || len(body) == 0 || !w.fresh.Load() {
		return
	}
	f, err := foundersType.Decode(body)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.founders[from] = f.Founders
}

// greet asks a server what it is.
func (w *network) greet(ctx context.Context, c cluster.Candidate, body []byte) (g greeting, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := w.CallAt(ctx, c, pathHello, body)
	if err != nil {
		w.node.log.Debug("hello", "addr", c.Addr, "error", err)
		return g, err
	}
	if g, err = greetingType.DecodeKnown(b); err != nil {
		return g, fmt.Errorf("hello of %s: the answer: %w", c.Addr, err)
	}
	return g, nil
}
