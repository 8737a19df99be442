package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Status is what an operator needs to know, as one server knows it. It has JSON for machines, and
// String for people.
type Status struct {
	ID      raft.ServerID `json:"id"`
	Leader  raft.ServerID `json:"leader,omitempty"` // empty if none is known
	Servers []raft.Server `json:"servers"`          // of the latest raft configuration
	Ready   bool          `json:"ready"`            // what WaitReady waits for
	// CaughtUp says that this server has, since Open, had everything that a leader had committed at some
	// moment after. Until then Keys and what follows from them may be outdated, and nothing is an orphan.
	CaughtUp bool `json:"caughtUp"`
	// LastContact is when this server last heard from a leader, and the present on a leader. Zero means
	// not since it was started.
	LastContact time.Time `json:"lastContact,omitzero"`
	Active      KeyID     `json:"active,omitzero"` // zero if there is none
	Keys        []Key     `json:"keys"`            // the newest first
	Missing     []KeyID   `json:"missing"`         // keys whose material is not held here
	Orphans     []KeyID   `json:"orphans"`         // key files here that the keyring does not know
	SetAside    []string  `json:"setAside"`        // files here that were bad, under the names they have now
	// KEKs are those of the configuration, the wrapping ones first.
	KEKs []KEKStatus `json:"keks"`
	// OnOldKEKs is how many key files here are not wrapped under exactly Config.KEKs, or not
	// known to be. Rewrap moves them; at zero, OldKEKs are needed no more.
	OnOldKEKs int `json:"onOldKEKs"`
	// NextRotation is when the next key is to become active, by this server's policy. Zero means
	// that only Rotate rotates, or that a key is to become active as soon as it can.
	NextRotation time.Time `json:"nextRotation,omitzero"`
	// LastBackup is the last that Backup has made, and NoBackup are the keys that are not in it, but for
	// prepublished ones that no majority of the voters holds: nothing is sealed under those. Whoever copies
	// keystore directories in its place need not care.
	LastBackup LastBackup `json:"lastBackup,omitzero"`
	NoBackup   []KeyID    `json:"noBackup"`
	// BackupSigner is what the backups of now are signed with: keep it where whoever writes the files can't
	// write, for RestoreOptions.Signer. It changes with the active key. Zero if that is not held here.
	BackupSigner BackupSigner `json:"backupSigner,omitzero"`
	// Rekeying is how the move of data goes, for each key that is rekeying; on the leader only.
	Rekeying []RekeyProgress `json:"rekeying"`
	// Problems are what is wrong, the worst first. Empty is good, on every server: some only the
	// leader knows, as ProblemRekey, and most are one server's own.
	Problems []Problem `json:"problems"`
}

// KEKStatus is a KEK as it answers.
type KEKStatus struct {
	ID   string `json:"id"`
	Old  bool   `json:"old,omitempty"`  // of OldKEKs
	Away string `json:"away,omitempty"` // why it does not answer, if it does not
}

// LastBackup is a backup as it was noted in raft. The zero value is none.
type LastBackup struct {
	Index  uint64      `json:"index"` // Manifest.Raft.Index, or less if a prepublished key was left out: see Backup
	Time   time.Time   `json:"time"`
	SHA256 meta.Digest `json:"sha256"` // as text 64 hexadecimal digits
}

// ProblemKind says what a Problem is.
type ProblemKind string

// The kinds of problems.
const (
	ProblemNoLeader    ProblemKind = "no leader"        // this server has heard from no leader for a while
	ProblemBehind      ProblemKind = "not caught up"    // this server does not know yet what was committed before its start
	ProblemUnconfirmed ProblemKind = "restored"         // nothing is sealed before a majority confirms that it holds the active key
	ProblemKeyMissing  ProblemKind = "key missing"      // a key's material is not held on this server
	ProblemKeyPending  ProblemKind = "key pending"      // a prepublished key is due and can't be activated
	ProblemClock       ProblemKind = "clock"            // clocks of two servers differ by more than TokenPolicy.Leeway
	ProblemTime        ProblemKind = "time ahead"       // a time in the keyring lies ahead of this server's clock
	ProblemKEKAway     ProblemKind = "KEK away"         // a KEK does not answer, or is not configured
	ProblemWrite       ProblemKind = "key not written"  // a key could not be made durable here
	ProblemUnderheld   ProblemKind = "underheld"        // the active key is not held by every server
	ProblemStuck       ProblemKind = "server behind"    // another server gets no further in raft's log
	ProblemRaftDisk    ProblemKind = "raft not written" // raft could not write its log here
	ProblemUnreachable ProblemKind = "no usable answer" // another server is unreachable, or what it sent was of no use
	ProblemRekey       ProblemKind = "rekey stuck"      // data under a key can't be moved
	ProblemRemoved     ProblemKind = "removed"          // this server is in the raft configuration no more
	ProblemNonvoter    ProblemKind = "no voter"         // a server of the leader's that can't vote yet
	ProblemNewer       ProblemKind = "newer build"      // the log, or a key file, has what only a newer build reads
	ProblemNotApplied  ProblemKind = "not applied"      // raft applies its log to another FSM than Config.FSM
	ProblemFirstKey    ProblemKind = "first key waits"  // for a server that opens its keystore, or has key files that nothing opens yet
	ProblemWaiting     ProblemKind = "command waits"    // servers that have not said that they apply the leader's next command
	ProblemPublicKey   ProblemKind = "public key"       // the public key in raft is not that of the key's material
	ProblemSetAside    ProblemKind = "file set aside"   // a bad key file; its key is fetched anew
	ProblemOrphan      ProblemKind = "orphan file"      // a key file that the keyring does not know
	ProblemNomad       ProblemKind = "Nomad's file"     // a key file of Nomad's that does not open, or that should go
	ProblemBackup      ProblemKind = "no backup"        // keys are newer than the last backup
	ProblemOldKEK      ProblemKind = "old KEKs"         // key files are not wrapped under exactly Config.KEKs
	ProblemInlineKEK   ProblemKind = "inline KEK"       // keys protect nothing from those who can read the files
)

// problemKinds are the kinds, the worst first, with what to do about each.
var problemKinds = []struct {
	kind   ProblemKind
	advice string
}{
	{ProblemNotApplied, "Give raft Config.FSM, alone or in a Mux that is outermost, with StoreConfiguration, and leave Log.Extensions as they are."},
	{ProblemNoLeader, "Bring back the servers that are down, until a majority of the voters runs, or see to the network. If most of them are gone for good: RecoverNode. If this server was removed, the others say so."},
	{ProblemBehind, "Nothing, if it has just started. Else see that a leader is elected and that this server reaches it. Until then what is said here of its files may be outdated: move and delete none."},
	{ProblemUnconfirmed, "Start the servers that are to hold the active key; they get it from any that has it. If most of them can't have it any more, call Rotate: a new key takes its place."},
	{ProblemKeyMissing, "Nothing, if another server has it. Else bring its file back, from a backup or an old disk, into the keystore directory."},
	{ProblemPublicKey, "Somebody has altered a raft snapshot, or lied when the key was adopted. If it is the active key, rotate. Remove it when nothing is sealed under it, and find out who it was."},
	{ProblemRemoved, "Close it and delete its directory. It joins anew with AddServer or a JoinToken."},
	{ProblemWrite, "Look at the disk: is it full, read-only, failing?"},
	{ProblemKEKAway, "See that the KEK answers, or configure the one that the files name. If it is gone for good, do as the README says under \"When a KMS is gone for good\"; the files stay where they are."},
	{ProblemFirstKey, "See that the KEKs answer there, or configure the ones that the files name. Files that are never to be opened again: move them out of the keystore directory, which is looked at again within a minute."},
	{ProblemKeyPending, "Bring the servers back that do not answer: a majority of the voters must hold it. Or remove the key, nothing is sealed under it."},
	{ProblemRaftDisk, "Look at the disk that has raft's log: is it full, read-only, failing? Until then this server takes in nothing new."},
	{ProblemStuck, "Look at that server's disk, which may be full, and at its log. It may also be taking in a large snapshot."},
	{ProblemUnderheld, "Start these servers, or see in their Status why they lack it. If most of the voters that hold it are lost, so is what is sealed under it."},
	{ProblemClock, "Set the clocks right, and have NTP keep them so. Meanwhile servers may refuse each other's tokens."},
	{ProblemTime, "If this server's clock is behind, set it right. If it is right, a leader's was ahead: keys rotate all the same; a key retired ahead verifies tokens until then, and Revoke ends that."},
	{ProblemRekey, "Overwrite the records that do not open, or see to the error of the host's store."},
	{ProblemNonvoter, "Nothing, if it has just joined. Else see which keys are missing, and where."},
	{ProblemNewer, "Start the newer build on this server: it reads what this one has left as it is."},
	{ProblemWaiting, "Start these servers, with this build."},
	{ProblemUnreachable, "Look at that server, its certificate and the network."},
	{ProblemSetAside, "Nothing in haste. It may be the only copy of a key: keep it until no server misses a key and there is a backup from after that."},
	{ProblemOrphan, "Adopt it if data is sealed under it; else leave it where it is."},
	{ProblemNomad, "Delete the files of Nomad's when the keyring holds their keys."},
	{ProblemBackup, "Call Backup."},
	{ProblemOldKEK, "Call Rewrap before OldKEKs are taken away."},
	{ProblemInlineKEK, "Use another KEK, unless you want just that."},
}

// rank is where the kind is among them.
func (k ProblemKind) rank() int {
	for i, p := range problemKinds {
		if p.kind == k {
			return i
		}
	}
	return -1
}

// Problem is one thing that is wrong.
type Problem struct {
	Kind   ProblemKind   `json:"kind"`
	Key    KeyID         `json:"key,omitzero"`     // zero if it is about no key
	Server raft.ServerID `json:"server,omitempty"` // empty if it is about this one
	KEK    string        `json:"kek,omitempty"`    // the ID, if it is about a KEK
	Detail string        `json:"detail"`
	Advice string        `json:"advice"` // what to do about it
}

// String is one line for people.
func (p Problem) String() string {
	s := string(p.Kind)
	if p.Key != (KeyID{}) {
		s += " " + p.Key.String()
	}
	if p.Server != "" {
		s += " " + string(p.Server)
	}
	return s + ": " + p.Detail
}

// Status tells how the keyring is, as far as this server knows. It does no I/O.
func (k *Keyring) Status(ctx context.Context) (Status, error) {
	_, done, err := k.gate.Enter(ctx)
	if err != nil {
		return Status{}, err
	}
	defer done()
	v := k.view()
	s := k.statusOf(v)
	s.Keys = publicKeys(v.ring)
	return s, nil
}

// statusOf is Status without Keys, which have to be parsed.
func (k *Keyring) statusOf(v view) Status {
	ring := v.ring
	_, lead := k.raft.LeaderWithID()
	s := Status{
		ID: k.cfg.ID, Leader: lead, Servers: k.raft.GetConfiguration().Configuration().Servers,
		Ready:        k.notReady() == nil,
		CaughtUp:     v.caughtUp,
		LastBackup:   LastBackup{ring.Backup.Index, ring.Backup.Time, ring.Backup.Digest},
		NextRotation: plan.NextRotation(k.sight(ring).Ring(ring), k.cfg.policy()),
	}
	if active := ring.Active(); active != nil {
		s.Active = active.ID
		s.BackupSigner = k.store.backupSigner(active)
	}
	for _, m := range ring.Keys {
		if !k.store.has(m) {
			s.Missing = append(s.Missing, m.ID)
		}
	}
	for _, m := range plan.Needed(ring, votersOf(s.Servers)) {
		if v.caughtUp && m.CreateIndex > ring.Backup.Index {
			s.NoBackup = append(s.NoBackup, m.ID)
		}
	}
	if n := len(s.NoBackup); n > 0 && s.LastBackup.Index > 0 {
		s.Problems = append(s.Problems, Problem{Kind: ProblemBackup, Detail: fmt.Sprintf(
			"%d keys are newer than the last backup, of %v", n, s.LastBackup.Time.Format(time.DateTime))})
	}
	k.describeRaft(&s)
	k.describeClocks(&s, ring)
	if lead == k.cfg.ID && k.unconfirmed(ring) {
		s.Problems = append(s.Problems, Problem{Kind: ProblemUnconfirmed, Key: s.Active, Detail: k.blocked.unconfirmed().Error()})
	}
	k.store.describe(&s, v)
	if s.OnOldKEKs = k.store.onOldKEKs(); s.OnOldKEKs > 0 {
		s.Problems = append(s.Problems, Problem{Kind: ProblemOldKEK, Detail: fmt.Sprintf(
			"%d key files are not wrapped under exactly the KEKs of the configuration", s.OnOldKEKs)})
	}
	describeKEKs(&s, k.store.keks)
	k.blocked.describe(&s)
	k.halves.describe(&s)
	if v.caughtUp && len(s.Servers) > 0 && !slices.ContainsFunc(s.Servers, func(r raft.Server) bool { return r.ID == k.cfg.ID }) {
		s.Problems = append(s.Problems, Problem{Kind: ProblemRemoved, Detail: "this server has left the cluster, or was removed"})
	}
	if rekeying := plan.Rekeying(ring); lead == k.cfg.ID {
		k.watch.describe(&s, k.lostAfter()/2)
		k.moves.describe(&s, rekeying)
		if len(rekeying) > 0 && k.cfg.Data == nil {
			s.Problems = append(s.Problems, Problem{Kind: ProblemRekey, Key: rekeying[0].ID, Detail: "the leader can't move its data: Config.Data is nil"})
		}
	}
	for i, p := range s.Problems {
		s.Problems[i].Advice = problemKinds[p.Kind.rank()].advice
	}
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return a.Kind.rank() - b.Kind.rank() })
	return s
}

// describeRaft adds what this server's raft is in need of.
func (k *Keyring) describeRaft(s *Status) {
	if err := k.fsm.complete(); err != nil {
		s.Problems = append(s.Problems, Problem{Kind: ProblemNewer, Detail: err.Error()})
	}
	if err := k.fsm.fed(k.raft); err != nil {
		s.Problems = append(s.Problems, Problem{Kind: ProblemNotApplied, Detail: err.Error()})
	}
	k.describeContact(s)
	if k.cfg.raftFaults != nil {
		for _, detail := range k.cfg.raftFaults() {
			s.Problems = append(s.Problems, Problem{Kind: ProblemRaftDisk, Detail: detail})
		}
	}
}

// describeContact adds what this server knows of a leader.
func (k *Keyring) describeContact(s *Status) {
	s.LastContact = k.raft.LastContact()
	if k.raft.State() == raft.Leader {
		s.LastContact = k.now()
	}
	since := "since its start"
	if !s.LastContact.IsZero() {
		s.LastContact = s.LastContact.UTC().Round(0)
		since = "since " + s.LastContact.Format(time.DateTime)
	}
	if silence := k.silence(); k.isLost(silence) {
		s.Problems = append(s.Problems, Problem{Kind: ProblemNoLeader, Detail: fmt.Sprintf(
			"this server has heard from no leader %s, for %v", since, silence.Round(time.Second))})
	}
	if !s.CaughtUp {
		s.Problems = append(s.Problems, Problem{Kind: ProblemBehind, Detail: k.caughtUp.err().Error()})
	}
}

// describe adds what the keystore knows.
func (s *keystore) describe(st *Status, v view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ring := v.ring
	add := func(p Problem) { st.Problems = append(st.Problems, p) }
	voters := votersOf(st.Servers)
	for _, id := range st.Missing {
		_, says := s.faults[id] // why; or it may be removed, or the leader says that it is pending
		if !says && v.caughtUp && plan.IsNeeded(ring.Key(id), voters) {
			add(Problem{Kind: ProblemKeyMissing, Key: id, Detail: "being fetched from the other servers"})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.faults), compareIDs) {
		f := s.faults[id]
		switch {
		case f.file != "":
			add(Problem{Kind: ProblemNomad, Key: id, Detail: f.err.Error()})
		case f.newer:
			add(Problem{Kind: ProblemNewer, Key: id, Detail: f.err.Error() + "; it is left as it is, and the key waits for it"})
		case f.kek != "":
			add(Problem{Kind: ProblemKEKAway, Key: id, KEK: f.kek, Detail: f.err.Error()})
		case f.mine:
			add(Problem{Kind: ProblemKeyMissing, Key: id, Detail: f.err.Error()})
		default:
			add(Problem{Kind: ProblemWrite, Key: id, Detail: f.err.Error()})
		}
	}
	for _, name := range s.setAside {
		st.SetAside = append(st.SetAside, name)
		add(Problem{Kind: ProblemSetAside, Detail: name})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.nomad), compareIDs) {
		if v.caughtUp && ring.WasRemoved(id) {
			add(Problem{Kind: ProblemNomad, Key: id, Detail: fmt.Sprintf(
				"the key was removed, and Nomad's files %q still have it: delete them", s.nomad[id])})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.graves), compareIDs) {
		aside := s.graves[id].aside
		if len(aside) > 0 && s.keys[id] == nil && len(plan.Orphans(ring, v.caughtUp, []KeyID{id})) > 0 {
			add(Problem{Kind: ProblemOrphan, Key: id, Detail: fmt.Sprintf(
				"files %q that were set aside, of a key that the keyring does not know; they are kept", aside)})
		}
	}
	st.Orphans = plan.Orphans(ring, v.caughtUp, slices.SortedFunc(maps.Keys(s.keys), compareIDs))
	st.Orphans = slices.DeleteFunc(st.Orphans, func(id KeyID) bool { return s.keys[id].gone })
	for _, id := range st.Orphans {
		add(Problem{Kind: ProblemOrphan, Key: id, Detail: "a key file that the keyring does not know; it is kept"})
	}
}

// describeKEKs adds how the KEKs do.
func describeKEKs(s *Status, keks *kek.Set) {
	for _, k := range keks.Status() {
		status := KEKStatus{ID: k.ID, Old: k.Old}
		if k.Down != nil {
			status.Away = k.Down.Error()
			s.Problems = append(s.Problems, Problem{Kind: ProblemKEKAway, KEK: k.ID, Detail: status.Away})
		}
		s.KEKs = append(s.KEKs, status)
	}
	if keks.HasInline() {
		s.Problems = append(s.Problems, Problem{Kind: ProblemInlineKEK, KEK: kek.InlineID, Detail: "whoever reads the key files has the keys"})
	}
}

// blocked is what the loops wait for.
type blocked struct {
	mu       sync.Mutex               // guards below
	failures map[string]failure       // of the last fetch, by peer
	behind   map[raft.ServerID]string // servers that a command waits for, and why
	hindered map[raft.ServerID]string // servers that the first key waits for, and why
	waiting  map[raft.ServerID]string // servers that are no voters yet, and why
	pending  map[KeyID]string
	restored string // of the active key that came with a snapshot
}

// failure is a fetch that came to nothing. It is news for an hour: when nothing is missing,
// there is no other fetch to tell that it has passed.
type failure struct {
	err error
	at  mono.Time
}

// fetch notes how the last fetch from a peer ended.
func (b *blocked) fetch(f fetched) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures == nil {
		b.failures = map[string]failure{}
	}
	if delete(b.failures, f.Peer); f.err != nil {
		b.failures[f.Peer] = failure{f.err, mono.Now()}
	}
}

// waitFor notes the servers that a command waits for.
func (b *blocked) waitFor(behind map[raft.ServerID]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.behind = behind
}

// hinder notes the servers that the first key waits for, but for those that do not answer.
func (b *blocked) hinder(why map[raft.ServerID]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hindered = why
}

// hindrances says what the first key waits for.
func (b *blocked) hindrances() (why []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range slices.Sorted(maps.Keys(b.hindered)) {
		why = append(why, string(s)+": "+b.hindered[s])
	}
	return why
}

// vote notes the servers that are no voters yet. The caller may go on with the map.
func (b *blocked) vote(waiting map[raft.ServerID]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = maps.Clone(waiting)
}

// resign forgets what a leader waits for.
func (b *blocked) resign() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.pending)
	b.behind, b.hindered, b.restored = nil, nil, ""
}

// wait notes what came of the live question about a key that is not active yet.
func (b *blocked) wait(id KeyID, confirmed, answered, asked int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending == nil {
		b.pending = map[KeyID]string{}
	}
	b.pending[id] = fmt.Sprintf("%d servers hold it; %d of %d answered", confirmed, answered, asked)
}

// confirm notes what came of the live question about an active key that came with a snapshot.
func (b *blocked) confirm(held, voters int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.restored = fmt.Sprintf(": %d of %d voters hold it, by the last question", held, voters)
}

// unconfirmed is why nothing is sealed after a restore.
func (b *blocked) unconfirmed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.New("a snapshot was restored, and no majority of the voters has confirmed since that it holds the active key" + b.restored)
}

func (b *blocked) clear(id KeyID) { b.retain(func(i KeyID) bool { return i != id }) }

// retain forgets the keys that wait no more.
func (b *blocked) retain(pends func(KeyID) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.pending, func(id KeyID, _ string) bool { return !pends(id) })
}

// describe adds what the loops wait for.
func (b *blocked) describe(st *Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(b.pending), compareIDs) {
		st.Problems = append(st.Problems, Problem{Kind: ProblemKeyPending, Key: id, Detail: b.pending[id]})
	}
	for _, s := range slices.Sorted(maps.Keys(b.waiting)) {
		st.Problems = append(st.Problems, Problem{Kind: ProblemNonvoter, Server: s, Detail: b.waiting[s]})
	}
	for _, s := range slices.Sorted(maps.Keys(b.hindered)) {
		st.Problems = append(st.Problems, Problem{Kind: ProblemFirstKey, Server: s, Detail: b.hindered[s]})
	}
	for _, s := range slices.Sorted(maps.Keys(b.behind)) {
		st.Problems = append(st.Problems, Problem{Kind: ProblemWaiting, Server: s, Detail: "it " + b.behind[s]})
	}
	for _, s := range slices.Sorted(maps.Keys(b.failures)) {
		if f := b.failures[s]; mono.Now().Sub(f.at) < time.Hour {
			st.Problems = append(st.Problems, Problem{Kind: ProblemUnreachable, Server: raft.ServerID(s), Detail: f.err.Error()})
		}
	}
}
