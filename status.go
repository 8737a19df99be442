package keyring

// Status, its text for people and its bytes for another server.

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// Status is the state of the keyring as one server knows it, for operators. It has JSON for machines, and
// String for people.
type Status struct {
	ID      raft.ServerID `json:"id"`
	Leader  raft.ServerID `json:"leader,omitempty"` // empty if none is known
	Servers []raft.Server `json:"servers"`          // of the latest raft configuration, which says who votes
	// Nonvoters are the permanent non-voters among the servers: see AddNonvoter. The other servers without a
	// vote are to get one.
	Nonvoters []raft.ServerID `json:"nonvoters"`
	Ready     bool            `json:"ready"` // see WaitReady
	// CaughtUp says that this server has applied everything that a leader had committed at some moment since
	// Open. Until then Keys, and all that follows from them, may be outdated, and no file is an orphan.
	CaughtUp bool `json:"caughtUp"`
	// LastContact is when this server last heard from a leader; on a leader it is the present time. Zero
	// means not since the start of this server.
	LastContact time.Time `json:"lastContact,omitzero"`
	Active      KeyID     `json:"active,omitzero"` // zero if there is none
	Keys        []Key     `json:"keys"`            // the newest first
	Missing     []KeyID   `json:"missing"`         // keys whose material this server lacks
	Orphans     []KeyID   `json:"orphans"`         // keys of files here that the keyring does not know
	SetAside    []string  `json:"setAside"`        // bad files here, by their new names
	// KEKs are the KEKs of the configuration, the wrapping ones first, and KEKs that are not configured but
	// that a key file needs.
	KEKs []KEKStatus `json:"keks"`
	// OnOldKEKs is the number of key files here that are not known to be wrapped under exactly Config.KEKs,
	// in the versions that they use now (see VersionedKEK). Rewrap moves them; at zero, OldKEKs are no longer
	// needed.
	OnOldKEKs int `json:"onOldKEKs"`
	// NextRotation is when the next key is to become active, by this server's policy. Zero means that only
	// Rotate rotates, or that a key becomes active as soon as it can.
	NextRotation time.Time `json:"nextRotation,omitzero"`
	// LastBackup is the last backup that ConfirmBackup or Backup has noted. NoBackup are the keys that are
	// not in it, except prepublished ones that no majority of the voters holds: no data is encrypted under
	// those. Ignore both if you copy keystore directories instead of making backups.
	LastBackup LastBackup `json:"lastBackup,omitzero"`
	NoBackup   []KeyID    `json:"noBackup"`
	// BackupSigner signs the backups that are made now. Keep it where those who write the backup files can't
	// write, for RestoreOptions.Signer. It changes with the active key. Zero if this server lacks that key.
	BackupSigner BackupSigner `json:"backupSigner,omitzero"`
	// Rekeying is the progress of re-encryption for each key that is rekeying; only the leader has it. If the
	// host has records in the clear that are to be encrypted, the first entry is for the zero KeyID.
	Rekeying []RekeyProgress `json:"rekeying"`
	// Certificates says when the certificates of this server's connections expire and, on the leader, those
	// of the other servers. The first to expire comes first. See Config.Certificates. String shows those that
	// expire soon, as problems.
	Certificates []Certificate `json:"certificates,omitempty"`
	// Problems are the problems that this server knows, the worst first. Some only the leader knows, such as
	// ProblemRekey; most concern one server. So ask every server: all is well if Problems is empty on each.
	Problems []Problem `json:"problems"`
}

// KEKStatus is the state of a KEK.
type KEKStatus struct {
	ID    string   `json:"id"`
	Old   bool     `json:"old,omitempty"`  // it is one of OldKEKs
	State KEKState `json:"state"`          // empty in the Status of an older build
	Away  string   `json:"away,omitempty"` // why it does not work; empty if it works
	// Warning says what else is wrong, for example that the file of a FileKEK is gone, has another KEK now,
	// or can be read by everybody. That file is checked when the keyring opens and every 30 seconds.
	Warning string `json:"warning,omitempty"`
}

// KEKState says whether a KEK works.
type KEKState string

// The states of KEKs.
const (
	KEKWorks        KEKState = "works"
	KEKUnavailable  KEKState = "does not answer"
	KEKThrottled    KEKState = "throttled"      // its errors match ErrKEKThrottled
	KEKRefuses      KEKState = "refuses"        // its errors match ErrKEKRefused
	KEKUnconfigured KEKState = "not configured" // key files name it, but it is not configured
)

// LastBackup is the backup that raft has noted last. Zero means none.
type LastBackup struct {
	Index  uint64    `json:"index"` // Manifest.Raft.Index, or less if a prepublished key was left out: see ConfirmBackup
	Time   time.Time `json:"time"`
	SHA256 Digest    `json:"sha256"` // of the file
}

// Digest is a SHA-256. Its text, in JSON too, is 64 hexadecimal digits.
type Digest [32]byte

// MarshalText returns the text, in lower case.
func (d Digest) MarshalText() ([]byte, error) { return meta.Digest(d).MarshalText() }

// UnmarshalText reads the text.
func (d *Digest) UnmarshalText(text []byte) error { return (*meta.Digest)(d).UnmarshalText(text) }

// BackupSigner is the Ed25519 public key that verifies the signature of a backup. It is derived from the
// material of the key that is active when the backup is made, so it changes with each rotation, and only
// servers of the cluster can sign. A server that has left the cluster can still sign with the keys that it
// had: after a theft use the signer of the next rotation. It is no secret. Its text is 64 hexadecimal digits;
// zero means none.
type BackupSigner [32]byte

// String returns the text.
func (b BackupSigner) String() string { return hex.EncodeToString(b[:]) }

// MarshalText returns the text.
func (b BackupSigner) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads the text.
func (b *BackupSigner) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(b) {
		return fmt.Errorf("signer of a backup: want %d hexadecimal digits", hex.EncodedLen(len(b)))
	}
	*b = BackupSigner(raw)
	return nil
}

// keksStatus says how the KEKs answer, and which ones files name that are not configured.
func keksStatus(all []kek.Status, faults []keystore.Fault) (keks []KEKStatus) {
	for _, k := range all {
		status := KEKStatus{ID: k.ID, Old: k.Old, State: KEKState(k.State), Warning: k.Warning}
		if k.Down != nil {
			status.Away = k.Down.Error()
		}
		keks = append(keks, status)
	}
	unconfigured := map[string]string{}
	for _, f := range faults {
		if f.State == kek.Unconfigured {
			unconfigured[f.KEK] = f.Err.Error()
		}
	}
	for _, id := range slices.Sorted(maps.Keys(unconfigured)) {
		keks = append(keks, KEKStatus{ID: id, State: KEKUnconfigured, Away: unconfigured[id]})
	}
	return keks
}

// String returns the status for people, in several lines: whether the server is well; its problems with
// advice; the state of the server; and a table of keys and servers. Times are in UTC. Programs should use the
// JSON.
func (s Status) String() string {
	var b strings.Builder
	b.WriteString(s.verdict() + "\n")
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "%s: %s\n    %s\n", p.Severity, p, p.Advice)
	}
	s.writeServer(&b)
	s.writeKeys(&b)
	for _, p := range s.Rekeying {
		if p.Key == KeyID(plaintexts.ID) {
			fmt.Fprintf(&b, "encrypting records in the clear: %d encrypted, %d conflicts", p.Moved, p.Conflicts)
		} else {
			fmt.Fprintf(&b, "rekeying %s: %d moved, %d conflicts", p.Key, p.Moved, p.Conflicts)
		}
		if p.Left >= 0 {
			fmt.Fprintf(&b, ", %d left", p.Left)
		}
		if p.Poisoned > 0 {
			fmt.Fprintf(&b, ", %d that do not decrypt: %q", p.Poisoned, p.PoisonedRefs)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// verdict is one line: well, or the number of problems of each severity. Notices alone are well.
func (s Status) verdict() string {
	count := map[Severity]int{}
	for _, p := range s.Problems {
		count[p.Severity]++
	}
	var all []string
	for _, of := range []Severity{SeverityCritical, SeverityWarning, SeverityNotice} {
		if n := count[of]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, of))
		}
	}
	switch {
	case len(all) == 0:
		return string(s.ID) + " is well"
	case count[SeverityNotice] == len(s.Problems):
		return string(s.ID) + " is well: " + all[0]
	}
	return string(s.ID) + " has problems: " + strings.Join(all, ", ")
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
		case k.State == KEKThrottled, k.State == KEKUnconfigured:
			fmt.Fprintf(b, "KEK %s is %s\n", k.ID, k.State)
		case k.Away != "":
			fmt.Fprintf(b, "KEK %s %s\n", k.ID, cmp.Or(k.State, KEKUnavailable))
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
		switch {
		case slices.Contains(s.Nonvoters, server.ID):
			fmt.Fprint(w, " (non-voter)")
		case server.Suffrage != raft.Voter:
			fmt.Fprint(w, " (no vote yet)")
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

// since is when the key got its present state, except for the state of its data.
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
	return inUTC(t)
}

// inUTC is a time for people. Its zone stands with it: who reads it is somewhere else.
func inUTC(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }

// maxStatus bounds another server's Status, in bytes of JSON. Ten thousand missing keys have 1 MiB; of an
// older build, with a problem for each, 3 MiB.
const maxStatus = 32 << 20

// statusAnswer is a Status on its way, but for Keys and NoBackup, which the server that asks has itself. No
// list is longer than this: a message has room for no more IDs.
type statusAnswer struct {
	statusFields `bound:"elements=32768,bytes=1048576"`
}

type statusFields struct {
	ID           raft.ServerID   `json:"id"`
	Leader       raft.ServerID   `json:"leader"`
	Servers      []raft.Server   `json:"servers"`
	Nonvoters    []raft.ServerID `json:"nonvoters"`
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
	Certificates []Certificate   `json:"certificates"`
	Problems     []problemFields `json:"problems"`
}

// problemFields are a Problem on its way.
type problemFields struct {
	Problem
	Key KeyID `json:"key"` // of a build that has a problem for each key, and no severities
}

func problemsOfFields(all []problemFields) []Problem {
	return oneACause(func(yield func(Problem) bool) {
		for _, p := range all {
			if p.Key != (KeyID{}) && p.Keys == nil {
				p.Keys = []KeyID{p.Key}
			}
			if p.Severity == "" {
				p.Severity = p.Kind.severity()
			}
			if !yield(p.Problem) {
				return
			}
		}
	})
}

func (f statusFields) status() Status {
	return Status{
		ID: f.ID, Leader: f.Leader, Servers: f.Servers, Nonvoters: f.Nonvoters, Ready: f.Ready, CaughtUp: f.CaughtUp, LastContact: f.LastContact,
		Active: f.Active, Missing: f.Missing, Orphans: f.Orphans, SetAside: f.SetAside, KEKs: f.KEKs, OnOldKEKs: f.OnOldKEKs,
		NextRotation: f.NextRotation, LastBackup: f.LastBackup, BackupSigner: f.BackupSigner, Rekeying: f.Rekeying,
		Certificates: f.Certificates, Problems: problemsOfFields(f.Problems),
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
