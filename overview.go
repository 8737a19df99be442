package keyring

// An overview of a server: how it is made, and how Status follows from it.

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"example.com/keyring/internal/replication"
	"github.com/hashicorp/raft"
)

// overview is what the parts of a server say of themselves, one after the other. Status is made of it alone.
type overview struct {
	local.View
	now time.Time
	at  mono.Time

	id, leader raft.ServerID
	servers    []raft.Server // of the latest raft configuration
	notReady   error         // why this server is not ready, or nil
	unready    mono.Time     // since when; zero if it is ready
	policy     plan.Policy
	tokens     plan.Tokens
	policies   map[string]string // see Config.policies
	dir        string            // Config.Dir
	noData     bool              // Config.Data is nil

	raft     raftStatus
	keystore keystore.Report
	signer   BackupSigner
	keks     []KEKStatus
	clocks   local.ClocksStatus
	waits    lead.Status
	watch    local.WatchStatus
	rekeying []RekeyProgress
	fetching replication.Status

	every    time.Duration // Config.Backups.Every; zero if it is zero
	schedule lead.ScheduleStatus

	wrongPublic []meta.KeyID // keys whose public key in raft is not that of their material

	certificates []Certificate // by Config.Certificates
	refused      error         // likewise, its error

	host      []Problem            // by Config.Problems
	hostCalls map[string]time.Time // functions of the host's that hang, and since when
	appCalls  map[string]time.Time // those of its FSM behind Mux, while which nothing is applied

	since map[cause]time.Time // when this server first saw what the Status before tells of
}

// raftStatus is what this server knows of its raft.
type raftStatus struct {
	incomplete  error         // see fsm.Machine.Complete
	unfed       error         // see fsm.Machine.Fed
	behind      error         // why this server has not caught up; of no meaning when it has
	lastIndex   uint64        // of raft's log
	lastContact time.Time     // zero if there was none since its start
	silence     time.Duration // for which it has heard from no leader
	patience    time.Duration // longer than which no election takes
}

// look is Status without Keys, which have to be parsed, and what it is made of.
func (k *Keyring) look() (overview, Status) {
	o := k.overview(k.caughtUp.View())
	s := o.status()
	since := sinceOf(s.Problems)
	k.since.Store(&since)
	return o, s
}

// overview asks the parts.
func (k *Keyring) overview(v local.View) overview {
	_, leader := k.server.Raft.LeaderWithID()
	report := k.server.Store.Report(v.Ring)
	o := overview{
		View: v, now: k.server.Now(), at: mono.Now(), id: k.server.cfg.ID, leader: leader,
		servers: k.server.Raft.GetConfiguration().Configuration().Servers,
		policy:  k.server.cfg.policy(), tokens: k.server.cfg.tokens(), policies: k.server.Policies, noData: k.server.cfg.Data == nil, dir: k.server.cfg.Dir,
		raft: k.raftStatus(), keystore: report, signer: k.backupSigner(v.Ring.Active()),
		keks: keksStatus(k.server.KEKs.Status(), report.Faults), clocks: k.clocks.Status(v.Ring),
		waits: k.leader.Status(v.Ring), watch: k.watch.Status(), rekeying: k.rekeyer.progress.status(plan.Rekeying(v.Ring)),
		fetching: k.replicator.Status(), wrongPublic: k.public.Status(),
	}
	if k.schedule != nil {
		o.every, o.schedule = k.server.cfg.Backups.Every, k.schedule.Status()
	}
	o.unready, o.notReady = k.lookReady()
	if ask := k.server.cfg.Certificates; ask != nil {
		o.certificates, o.refused = ask()
	}
	if since := k.since.Load(); since != nil {
		o.since = *since
	}
	o.host, o.hostCalls, o.appCalls = k.host.problems(), k.hostCalls.Slow(o.at), k.server.FSM.App.Slow(o.at)
	maps.Copy(o.hostCalls, k.server.FSM.Persisting.Slow(o.at))
	return o
}

func (k *Keyring) raftStatus() raftStatus {
	s := raftStatus{
		incomplete: k.server.FSM.Complete(), unfed: k.server.FSM.Fed(k.server.Raft), behind: k.caughtUp.Err(),
		lastIndex: k.server.Raft.LastIndex(), lastContact: k.server.Raft.LastContact(), silence: k.server.Silence(), patience: k.server.LostAfter(),
	}
	if k.server.Raft.State() == raft.Leader {
		s.lastContact = k.server.Now()
	}
	return s
}

// lasts reports whether something lasts for longer than an election or a fetch takes. Zero is the time of
// nothing.
func (o overview) lasts(since mono.Time) bool {
	return since != 0 && o.at.Sub(since) > o.raft.patience/2
}

// status makes the Status of it, without Keys.
func (o overview) status() Status {
	s := Status{
		ID: o.id, Leader: o.leader, Servers: o.servers, Nonvoters: nonvoters(o.View, o.servers), Ready: o.notReady == nil, CaughtUp: o.CaughtUp,
		LastBackup:   LastBackup{o.Ring.Backup.Index, o.Ring.Backup.Time, Digest(o.Ring.Backup.Digest)},
		NextRotation: plan.NextRotation(o.clocks.RingClock.Correct(o.Ring), o.policy),
		Missing:      idsAs[KeyID](o.keystore.Missing), SetAside: o.keystore.SetAside,
		Orphans: o.orphans(), OnOldKEKs: o.keystore.OnOldKEKs, NoBackup: noBackup(o.View, o.servers),
		KEKs: o.keks, BackupSigner: o.signer, Certificates: o.certificates,
	}
	if active := o.Ring.Active(); active != nil {
		s.Active = KeyID(active.ID)
	}
	if !o.raft.lastContact.IsZero() {
		s.LastContact = o.raft.lastContact.UTC().Round(0)
	}
	if o.leader == o.id {
		s.Rekeying = o.rekeying
	}
	s.Problems = problemsOf(o, s)
	return s
}

// nonvoters are the servers of Status.Nonvoters. A record may outlive the change of the raft configuration by
// a moment.
func nonvoters(v local.View, servers []raft.Server) (ids []raft.ServerID) {
	for _, s := range servers {
		if s.Suffrage != raft.Voter && v.Ring.IsNonvoter(string(s.ID)) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// noBackup are the keys of Status.NoBackup.
func noBackup(v local.View, servers []raft.Server) (ids []KeyID) {
	for _, m := range plan.Needed(v.Ring, local.VotersOf(servers)) {
		if v.CaughtUp && m.CreateIndex > v.Ring.Backup.Index {
			ids = append(ids, KeyID(m.ID))
		}
	}
	return ids
}

// orphans are the keys of files that the ring does not know, but for those that this process has just made:
// the leader offers a key before it is in the ring.
func (o overview) orphans() []KeyID {
	return idsAs[KeyID](slices.DeleteFunc(plan.Orphans(o.Ring, o.CaughtUp, o.keystore.Files), func(id meta.KeyID) bool {
		made := o.keystore.Written[id]
		return made != 0 && !o.lasts(made)
	}))
}

// problemsOf returns what is wrong by an overview, the worst first, with what to do about it.
func problemsOf(o overview, st Status) []Problem {
	all := slices.Concat(
		o.backupProblems(st), o.scheduleProblems(st), o.raftProblems(st), o.clockProblems(), o.policyProblems(), o.jwksProblems(), o.newerKeyProblems(), o.keystoreProblems(st), o.kekProblems(st),
		o.ownProblems(), o.copiedProblems(), o.leaderProblems(st), o.hostCallProblems(), o.certificateProblems(), o.host,
	)
	all = o.withWhyNotReady(all, st)
	for i := range all {
		p := &all[i]
		if p.Advice == "" {
			p.Advice = p.Kind.advice()
		}
		if p.Severity == "" {
			p.Severity = p.Kind.severity()
		}
	}
	all = oneACause(slices.Values(all))
	for i := range all {
		p := &all[i]
		if p.Since.IsZero() {
			p.Since = o.since[p.cause()]
		}
		if p.Since.IsZero() {
			p.Since = o.now
		}
		p.Since = p.Since.UTC().Round(0)
	}
	slices.SortStableFunc(all, func(a, b Problem) int {
		return cmp.Or(a.Severity.rank()-b.Severity.rank(), a.Kind.rank()-b.Kind.rank())
	})
	return all
}
