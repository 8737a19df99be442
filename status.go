package keyring

// Status, the overview that it is made of, its text for people and its bytes for another server.

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
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
	// known to be. Rewrap moves them; at zero, OldKEKs are no longer needed.
	OnOldKEKs int `json:"onOldKEKs"`
	// NextRotation is when the next key is to become active, by this server's policy. Zero means
	// that only Rotate rotates, or that a key is to become active as soon as it can.
	NextRotation time.Time `json:"nextRotation,omitzero"`
	// LastBackup is the last that Backup has made, and NoBackup are the keys that are not in it, but for
	// prepublished ones that no majority of the voters holds: nothing is sealed under those. Hosts that copy
	// keystore directories in its place need not care.
	LastBackup LastBackup `json:"lastBackup,omitzero"`
	NoBackup   []KeyID    `json:"noBackup"`
	// BackupSigner is what the backups of now are signed with: keep it where those who write the files can't
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

// Status tells how the keyring is, as far as this server knows. It does no I/O.
func (k *Keyring) Status(ctx context.Context) (Status, error) {
	_, done, err := k.server.Gate.Enter(ctx)
	if err != nil {
		return Status{}, err
	}
	defer done()
	v := k.caughtUp.View()
	s := k.statusOf(v)
	s.Keys = keysOf(v.Ring)
	return s, nil
}

// statusOf is Status without Keys, which have to be parsed.
func (k *Keyring) statusOf(v local.View) Status { return k.overview(v).status() }

// overview is what the parts of a server say of themselves, one after the other. Status is made of it alone.
type overview struct {
	local.View
	now time.Time
	at  mono.Time

	id, leader raft.ServerID
	servers    []raft.Server // of the latest raft configuration
	ready      bool
	policy     plan.Policy
	tokens     plan.Tokens
	noData     bool // Config.Data is nil

	raft     raftStatus
	keystore keystore.Report
	signer   BackupSigner
	keks     []KEKStatus
	inline   bool // one of them is InlineKEK
	clocks   local.ClocksStatus
	waits    lead.Status
	watch    local.WatchStatus
	rekeying []RekeyProgress
	failures map[string]error // of fetches, by server

	wrongPublic []KeyID // keys whose public key in raft is not that of their material

	host []Problem // by Config.Problems
}

// raftStatus is what this server knows of its raft.
type raftStatus struct {
	incomplete  error         // see FSM.complete
	unfed       error         // see FSM.fed
	behind      error         // why this server has not caught up; of no meaning when it has
	lastContact time.Time     // zero if there was none since its start
	silence     time.Duration // for which it has heard from no leader
	patience    time.Duration // longer than which no election takes
}

func (k *Keyring) overview(v local.View) overview {
	_, leader := k.server.Raft.LeaderWithID()
	o := overview{
		View: v, now: k.server.Now(), at: mono.Now(), id: k.server.cfg.ID, leader: leader,
		servers: k.server.Raft.GetConfiguration().Configuration().Servers, ready: k.notReady() == nil,
		policy: k.server.cfg.policy(), tokens: k.server.cfg.tokens(), noData: k.server.cfg.Data == nil,
		raft: k.raftStatus(), keystore: k.server.Store.Report(v.Ring), signer: k.backupSigner(v.Ring.Active()),
		keks: keksStatus(k.server.KEKs.Status()), inline: k.server.KEKs.HasInline(), clocks: k.clocks.Status(v.Ring),
		waits: k.leader.Status(v.Ring), watch: k.watch.Status(), rekeying: k.rekeyer.progress.status(plan.Rekeying(v.Ring)),
		failures: k.replicator.Status(), wrongPublic: k.public.Status(),
	}
	if k.server.cfg.Problems != nil {
		o.host = k.server.cfg.Problems()
	}
	return o
}

func (k *Keyring) raftStatus() raftStatus {
	s := raftStatus{
		incomplete: k.server.FSM.Complete(), unfed: k.server.FSM.Fed(k.server.Raft), behind: k.caughtUp.Err(),
		lastContact: k.server.Raft.LastContact(), silence: k.server.Silence(), patience: k.server.LostAfter(),
	}
	if k.server.Raft.State() == raft.Leader {
		s.lastContact = k.server.Now()
	}
	return s
}

// status makes the Status of it, without Keys.
func (o overview) status() Status {
	s := Status{
		ID: o.id, Leader: o.leader, Servers: o.servers, Ready: o.ready, CaughtUp: o.CaughtUp,
		LastBackup:   LastBackup{o.Ring.Backup.Index, o.Ring.Backup.Time, o.Ring.Backup.Digest},
		NextRotation: plan.NextRotation(o.clocks.RingClock.Correct(o.Ring), o.policy),
		Missing:      o.keystore.Missing, SetAside: o.keystore.SetAside,
		Orphans: plan.Orphans(o.Ring, o.CaughtUp, o.keystore.Files), OnOldKEKs: o.keystore.OnOldKEKs,
		KEKs: o.keks, BackupSigner: o.signer,
	}
	if active := o.Ring.Active(); active != nil {
		s.Active = active.ID
	}
	if !o.raft.lastContact.IsZero() {
		s.LastContact = o.raft.lastContact.UTC().Round(0)
	}
	for _, m := range plan.Needed(o.Ring, local.VotersOf(o.servers)) {
		if o.CaughtUp && m.CreateIndex > o.Ring.Backup.Index {
			s.NoBackup = append(s.NoBackup, m.ID)
		}
	}
	if o.leader == o.id {
		s.Rekeying = o.rekeying
	}
	s.Problems = problemsOf(o, s)
	return s
}

// keksStatus says how the KEKs answer.
func keksStatus(all []kek.Status) (keks []KEKStatus) {
	for _, k := range all {
		status := KEKStatus{ID: k.ID, Old: k.Old}
		if k.Down != nil {
			status.Away = k.Down.Error()
		}
		keks = append(keks, status)
	}
	return keks
}

// String is the status for people, over several lines: how the server is, keys × servers, and what
// is wrong with what to do about it. Times are UTC. It is not for programs: they take the JSON.
func (s Status) String() string {
	var b strings.Builder
	s.writeServer(&b)
	s.writeKeys(&b)
	for _, p := range s.Rekeying {
		fmt.Fprintf(&b, "rekeying %s: %d moved, %d conflicts", p.Key, p.Moved, p.Conflicts)
		if p.Left >= 0 {
			fmt.Fprintf(&b, ", %d left", p.Left)
		}
		if p.Poisoned > 0 {
			fmt.Fprintf(&b, ", %d that do not open: %q", p.Poisoned, p.PoisonedRefs)
		}
		b.WriteByte('\n')
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "%s\n    %s\n", p, p.Advice)
	}
	return b.String()
}

func (s Status) writeServer(b *strings.Builder) {
	how := "follows " + string(s.Leader)
	switch s.Leader {
	case s.ID:
		how = "leads"
	case "":
		how = "knows no leader"
	}
	if !s.Ready {
		how += ", not ready"
	}
	fmt.Fprintf(b, "%s %s\n", s.ID, how)
	for _, k := range s.KEKs {
		switch {
		case k.Away != "":
			fmt.Fprintf(b, "KEK %s is away\n", k.ID)
		case k.Old:
			fmt.Fprintf(b, "KEK %s is an old one\n", k.ID)
		default:
			fmt.Fprintf(b, "KEK %s wraps\n", k.ID)
		}
	}
	fmt.Fprintf(b, "next rotation: %s\n", date(s.NextRotation, "by hand"))
	fmt.Fprintf(b, "last backup: %s\n", date(s.LastBackup.Time, "none"))
	if s.BackupSigner != (BackupSigner{}) {
		fmt.Fprintf(b, "backups are signed by %s\n", s.BackupSigner)
	}
}

func (s Status) writeKeys(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nKEY\tSTATE\tSINCE")
	for _, server := range s.Servers {
		fmt.Fprintf(w, "\t%s", server.ID)
		if server.Suffrage != raft.Voter {
			fmt.Fprint(w, " (no voter)")
		}
	}
	fmt.Fprintln(w)
	for _, k := range s.Keys {
		fmt.Fprintf(w, "%s\t%s\t%s", k.ID, k.State, date(k.since(), ""))
		for _, server := range s.Servers {
			fmt.Fprintf(w, "\t%s", s.holds(server.ID, k))
		}
		fmt.Fprintln(w)
	}
	w.Flush() // a Builder does not fail
	b.WriteByte('\n')
}

// holds says whether a server has a key: this one as it is, another as it has last reported.
func (s Status) holds(server raft.ServerID, k Key) string {
	held := slices.Contains(k.Holders, server)
	if server == s.ID {
		held = !slices.Contains(s.Missing, k.ID)
	}
	if held {
		return "held"
	}
	return "missing"
}

// since is when the key came to what it is now, but for its data.
func (k Key) since() time.Time {
	for _, t := range []time.Time{k.Retired, k.Activated} {
		if !t.IsZero() {
			return t
		}
	}
	return k.Created
}

func date(t time.Time, none string) string {
	if t.IsZero() {
		return none
	}
	return t.UTC().Format(time.DateTime)
}

// EncodeStatus returns the leader's Status in bytes, for DecodeStatus on the server that has asked for it. Keys and
// NoBackup are not in it. Leader only.
func (k *Keyring) EncodeStatus() ([]byte, error) {
	if err := k.server.Leading(); err != nil {
		return nil, err
	}
	s := k.statusOf(k.caughtUp.View())
	s.NoBackup = nil
	return packStatus(s)
}

// DecodeStatus returns the leader's Status from what its EncodeStatus has returned, of an older or newer build too.
// Keys and NoBackup are as this server has them. The bytes may come from a server that lies.
func (k *Keyring) DecodeStatus(b []byte) (Status, error) {
	if err := k.server.Gate.Err(); err != nil {
		return Status{}, err
	}
	s, err := unpackStatus(b)
	if err != nil {
		return Status{}, fmt.Errorf("status: the leader's answer: %w", err)
	}
	v := k.caughtUp.View()
	s.Keys, s.NoBackup = keysOf(v.Ring), k.statusOf(v).NoBackup
	return s, nil
}

// maxStatus bounds another server's Status, in bytes of JSON. Ten thousand missing keys, with a problem
// for each, have 3 MiB, which shrink to a tenth on the way.
const maxStatus = 32 << 20

// statusAnswer is a Status on its way, but for Keys and NoBackup, which the server that asks has itself. No list is longer
// than this: a message has room for no more IDs.
type statusAnswer struct {
	statusFields `bound:"elements=32768,bytes=1048576"`
}

type statusFields struct {
	ID           raft.ServerID   `json:"id"`
	Leader       raft.ServerID   `json:"leader"`
	Servers      []raft.Server   `json:"servers"`
	Ready        bool            `json:"ready"`
	CaughtUp     bool            `json:"caughtUp"`
	LastContact  time.Time       `json:"lastContact"`
	Active       KeyID           `json:"active"`
	Missing      []KeyID         `json:"missing"`
	Orphans      []KeyID         `json:"orphans"`
	SetAside     []string        `json:"setAside"`
	KEKs         []KEKStatus     `json:"keks"`
	OnOldKEKs    int             `json:"onOldKEKs"`
	NextRotation time.Time       `json:"nextRotation"`
	LastBackup   LastBackup      `json:"lastBackup"`
	BackupSigner BackupSigner    `json:"backupSigner"`
	Rekeying     []RekeyProgress `json:"rekeying"`
	Problems     []Problem       `json:"problems"`
}

func (f statusFields) status() Status {
	return Status{
		ID: f.ID, Leader: f.Leader, Servers: f.Servers, Ready: f.Ready, CaughtUp: f.CaughtUp, LastContact: f.LastContact,
		Active: f.Active, Missing: f.Missing, Orphans: f.Orphans, SetAside: f.SetAside, KEKs: f.KEKs, OnOldKEKs: f.OnOldKEKs,
		NextRotation: f.NextRotation, LastBackup: f.LastBackup, BackupSigner: f.BackupSigner, Rekeying: f.Rekeying,
		Problems: f.Problems,
	}
}

var statusType = bounded.For[statusAnswer](maxStatus)

func packStatus(s Status) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(s); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func unpackStatus(b []byte) (Status, error) {
	all, err := bounded.Gunzip(b, maxStatus)
	if err != nil {
		return Status{}, err
	}
	a, err := statusType.DecodeKnown(all) // a newer leader may know more
	if err != nil {
		return Status{}, err
	}
	return a.status(), nil
}
