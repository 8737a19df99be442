package lead

// What comes before the first key of a cluster: the hellos, the bootstrap, the orphans that are adopted.

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// sayHello asks every server what it is and which keys it has that the ring does not know. The first
// command of a cluster waits for all that plan says it has to wait for: a build without a keyring would
// not know what to do with it, and the first key would make orphans of the keys that a server has yet
// to read.
func (l *Leader) sayHello(ctx context.Context, s plan.Situation) error {
	answers := l.HelloEach(ctx, s.Servers)
	hellos := map[string]plan.HelloResult{}
	l.orphans = nil
	own := func(server string) int { // first: who tells of a key first counts, and its own public keys the leader derives
		if server == string(l.ID) {
			return 0
		}
		return 1
	}
	for _, server := range slices.SortedStableFunc(slices.Values(s.Servers), func(a, b string) int { return own(a) - own(b) }) {
		a, up := answers[server]
		// Where raft runs there is to be a keyring, if all are of this build, though it answers nothing yet.
		up = up || l.EveryBuild && l.Watch.Answers(server)
		if up {
			l.seen[server] = mono.Now()
		}
		h := plan.HelloResult{There: up, Silent: mono.Now().Sub(max(l.began, l.seen[server]))}
		if a != nil {
			h.Build = a.Build
			l.orphans = append(l.orphans, l.usable(server, a.Orphans)...)
		}
		if a != nil && a.Waiting != nil {
			h.Waiting = a.Waiting.Files
		}
		hellos[server] = h
	}
	waits := plan.FirstKeyWaits(s.Servers, hellos, l.EveryBuild)
	unheard, hindered := map[raft.ServerID]string{}, map[raft.ServerID]string{}
	for server, why := range waits {
		switch id := raft.ServerID(server); why {
		case plan.NoAnswer:
			unheard[id] = local.NoAnswer
		case plan.NotOpen:
			hindered[id] = "it is opening its keystore, or hears nothing from this server"
		case plan.FilesWait:
			hindered[id] = waitingText(answers[server].Waiting)
		}
	}
	l.noteCommand(unheard)
	l.noteFirstKey(hindered)
	l.FSM.Notify() // for WaitReady, which says so
	if len(waits) > 0 {
		return fmt.Errorf("the first command and key wait for %q", slices.Sorted(maps.Keys(waits)))
	}
	if err := l.AskFiles(ctx); err != nil { // before there are files; the replicator asks again
		l.Logger.Debug("not every server reads newer key files yet", "error", err)
	}
	l.helloFrom = s.Servers
	return nil
}

// usable returns the orphans that this build can use. The others stay orphans, for a leader of a newer build.
func (l *Leader) usable(server string, orphans []meta.NewKey) (usable []meta.NewKey) {
	for _, o := range orphans {
		if why := o.Newer(); why != "" {
			l.Logger.Warn("did not adopt an orphan", "server", server, "key", o.ID, "reason", why)
			continue
		}
		usable = append(usable, o)
	}
	return usable
}

// waitingText says which key files a server can't open.
func waitingText(w *peer.Waiting) string {
	what := "can't be read, or are not open yet"
	if len(w.KEKs) > 0 {
		what = "wait for KEK " + strings.Join(w.KEKs, " or ")
	}
	return fmt.Sprintf("%d of %d key files there %s", w.Files, w.Of, what)
}

// adoptAtOnce is how many adoptions go in one log entry, which then has a few hundred KB.
const adoptAtOnce = 500

// bootstrap names the cluster and adopts the orphans: keys that open data and verify nothing.
func (l *Leader) bootstrap(ctx context.Context, ring *meta.Ring, holds []meta.Command) error {
	var cmds []meta.Command
	if ring.Cluster == (meta.ClusterID{}) {
		var id meta.ClusterID
		rand.Read(id[:]) // never fails
		cmds = append(cmds, meta.Command{Init: &meta.Init{Cluster: id}})
	}
	seen, at := map[meta.KeyID]bool{}, l.Clocks.TimeToWrite(ctx)
	for _, o := range l.orphans {
		if len(seen) == adoptAtOnce {
			break
		}
		if seen[o.ID] || ring.Key(o.ID) != nil || ring.WasRemoved(o.ID) {
			continue
		}
		adopt := meta.Command{Adopt: &meta.Adopt{Key: o, DataOnly: true, Time: at}}
		if _, err := (meta.Entry{Commands: []meta.Command{adopt}}).Encode(); err != nil { // one bad file must not hold up all the others
			l.Logger.Error("could not adopt an orphan", "key", o.ID, "error", err)
			continue
		}
		seen[o.ID] = true
		cmds = append(cmds, adopt)
	}
	// There may be more orphans than one answer or entry holds: ask again before the first key.
	if l.orphans = nil; len(seen) > 0 {
		l.helloFrom = nil
	}
	if len(cmds)+len(holds) == 0 {
		return nil
	}
	return l.proposeWith(ctx, slices.Concat(cmds, holds))
}
