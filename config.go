package keyring

// Config, and what zero means in it.

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// RotationPolicy is when the leader rotates of its own accord. A time that is set is at least a second, so that a number
// without a unit, which is nanoseconds, is refused; and at most 100 years.
type RotationPolicy struct {
	// Every is the time from one activation to the next. Zero means 30 days; negative
	// means that only Rotate rotates.
	Every time.Duration
	// Lead is how long before its activation the next key is prepublished. Zero means
	// 24 hours, or half of Every if that is less. It must be less than Every.
	Lead time.Duration
	// Undo is how long the file of a removed key is kept aside: for so long a raft snapshot from
	// before the removal brings the key back. Zero means 7 days; negative means that it is
	// unlinked at once. It is the same on all servers; the longer of a server's and the
	// leader's counts.
	Undo time.Duration
	// Retain is how long after its retirement a key is kept: then its data is moved, and the
	// key removed. While its tokens live it is kept in any case. Zero keeps it for ever. It
	// needs Config.Data.
	Retain time.Duration
}

// TokenPolicy is what tokens are like. It is the same on every server. A time that is set is at least a second.
type TokenPolicy struct {
	// Issuer is the iss of the tokens: the http or https URL at which relying parties find
	// WellKnown, without query or fragment. Empty means that tokens need none, Verify does
	// not look at it, and there is no discovery document.
	Issuer string
	// AcceptIssuers are the other issuers whose tokens Verify takes: one that comes, or one that goes, so that Issuer can
	// change without a token that is refused; docs/tokens.md says in which order. They are URLs as Issuer is, at most 16, of
	// 1,500 bytes together; an empty one stands for tokens without iss. Sign takes claims whose iss is one of them, and
	// WellKnownFor serves the discovery document of each. Empty means none.
	AcceptIssuers []string
	// JWKSURL is the jwks_uri of the discovery documents: the http or https URL of the JWKS, where that is not served
	// below the issuer. Empty means /.well-known/jwks.json below it.
	JWKSURL string
	// Algorithm is that of the signing keys to be made: RS256, ES256 or EdDSA. Empty means
	// RS256. Keys that exist keep theirs.
	Algorithm string
	// MaxTTL is the longest life of a token, and what it gets if its claims have no exp.
	// Zero means 24 hours; it is at most 100 years. A key that was retired verifies for
	// this long, so after it was shortened, tokens from before may be refused early.
	MaxTTL time.Duration
	// Leeway is how far clocks may be apart. It also covers the time that a rotation takes
	// to commit. Two servers' clocks that differ by more are a ProblemClock. Zero means one minute; it is at most a day.
	Leeway time.Duration
}

// Config is what Open needs. Dir, ID, Raft, FSM and KEKs are required.
type Config struct {
	// Dir is the keystore directory. It is created if it is missing; its mode is made
	// 0700. One process at a time uses it.
	Dir string
	// ID is this server's ID in the raft configuration: at most 255 bytes of UTF-8.
	ID raft.ServerID
	// Raft is the host's raft. It is running on FSM, or on a Mux with it. The host closes it. If it
	// does not restore its snapshots at the start, see FSM.Load.
	Raft *raft.Raft
	// FSM is the one that Raft applies to. It serves one Keyring at a time.
	FSM *FSM
	// Transport carries requests to the other servers. Nil means that there are none:
	// enough for a cluster of one.
	Transport Transport
	// KEKs wrap the material, each of them all of it; any one opens it. At least one must
	// be able to unwrap.
	KEKs []KEK
	// OldKEKs open material that was wrapped under them, and wrap nothing. Rewrap moves
	// the files off them; Status says how many are left. WaitReady does not wait for them.
	// Empty means none.
	OldKEKs []KEK
	// Rotation is when keys rotate. Zero means every 30 days.
	Rotation RotationPolicy
	// Tokens is how tokens are signed and verified. Zero means RS256 and at most 24 hours.
	Tokens TokenPolicy
	// Data finds the ciphertexts that have to be re-encrypted: for RotateOptions.Full, for
	// Remove, and for RotationPolicy.Retain. Nil means that these are not possible; NoData
	// that nothing is kept that was sealed.
	Data SealedData
	// RekeyGrace is for data that is not in this raft, or whose FSM does not call Admit: how
	// long after a rotation a writer may still store what it has sealed under the key before. The
	// last scan waits for so long. Zero is right where Admit guards all writes; else it is at least a second, and
	// at most 100 years.
	RekeyGrace time.Duration
	// RekeyRate is how many records are moved in a second, at most. Zero means no limit.
	RekeyRate int
	// Backups are the backups that the leader makes by itself. The zero value makes none.
	Backups BackupSchedule
	// Audit is told of every step in the life of a key that this server applies while the keyring is
	// open: one at a time, in the order of the log, soon after. What a server gets as a snapshot, or
	// has applied before Open, another one has told. After a restart raft applies again what its log has since the
	// last snapshot, and Audit is told of it again: each step at least once, because a crash may come before Audit has
	// it. Keep one for each Index, Step and Key. Close waits for it. Nil tells nobody.
	Audit func(Event)
	// Metrics receives the figures of this server: see MetricInfos. Packages gometrics and prometheus have
	// ready ones. Nil means that nobody does.
	Metrics Metrics
	// MetricsEvery is how often Metrics receives what MetricInfos lists, but for the progress of a rekey, which it
	// receives as it comes. Zero means 30 seconds, for some sinks forget what is not set again; negative
	// means never. It is at least a second.
	MetricsEvery time.Duration
	// Logger gets what an operator should know; never key material. Nil logs nothing.
	Logger hclog.Logger
	// EveryBuild says that every build of the service that a server of this cluster may run has the keyring. Then the
	// first command waits 10 seconds, and no longer, for a server that does not answer. Else it waits until that server
	// has answered: a build without the keyring could not apply the command.
	EveryBuild bool
	// Certificates returns when the certificates end on which this server's connections depend and, on the leader, those of the
	// other servers, the first to end first; and as an error why others refuse this server's own now, or what is wrong with
	// its files. Status, ProblemCertificate and the metric keyring.certificate.left tell of them. It is called from several
	// goroutines, and must not block. Packages port and node, and the module grpc, set it. Nil says nothing.
	Certificates func() ([]Certificate, error)
	// Problems returns what is wrong with the host's part, as the disk of its raft, for Status: problems whose Advice is
	// empty get the one for their Kind. It is called from several goroutines, and must not block. See Notify. Nil
	// returns none.
	Problems func() []Problem

	onLookUp func() // called between the two loads of lookUpSealing, by tests
}

const (
	defaultEvery = 30 * 24 * time.Hour
	defaultLead  = 24 * time.Hour
	defaultUndo  = 7 * 24 * time.Hour

	defaultMetricsEvery = 30 * time.Second

	defaultMaxTTL = 24 * time.Hour
	defaultLeeway = time.Minute
)

// wrongs is all that is wrong with a configuration.
type wrongs []error

func (w *wrongs) unless(ok bool, format string, args ...any) {
	if !ok {
		*w = append(*w, fmt.Errorf(format, args...))
	}
}

// Bounds on the times of a configuration. Sums of a few of them stay far below the longest time.Duration.
const (
	shortest      = time.Second
	longest       = 100 * 365 * 24 * time.Hour
	longestLeeway = 24 * time.Hour
)

// duration requires a time to be zero or within its bounds.
func (w *wrongs) duration(name string, d, most time.Duration) {
	w.unless(d >= 0, "%s %v is negative", name, d)
	w.unless(d <= 0 || d >= shortest, "%s %v is less than a second: a number without a unit is nanoseconds", name, d)
	w.unless(d <= most, "%s %v is more than %v", name, d, most)
}

// serverID requires an ID that the ring takes.
func (w *wrongs) serverID(id raft.ServerID) {
	w.unless(id != "" && len(id) <= meta.MaxServerID && utf8.ValidString(string(id)),
		"ID is empty, longer than %d bytes or not UTF-8", meta.MaxServerID)
}

// withDefaults fills in what zero means, or says all that is wrong.
func (c Config) withDefaults() (Config, error) {
	var w wrongs
	w.unless(c.Dir != "", "Dir is empty")
	w.serverID(c.ID)
	w.unless(c.Raft != nil, "Raft is nil")
	w.unless(c.FSM != nil, "FSM is nil")
	c.fillPolicies(&w)
	if c.Raft != nil && c.Transport == nil {
		others := slices.DeleteFunc(local.ServerIDs(c.Raft), func(s string) bool { return s == string(c.ID) })
		w.unless(len(others) == 0, "Transport is nil and the raft configuration has %d other servers", len(others))
	}
	if c.Raft != nil && c.FSM != nil {
		if err := c.FSM.machine.StartedOn(c.Raft); err != nil {
			w = append(w, err)
		}
	}
	c.MetricsEvery = cmp.Or(c.MetricsEvery, defaultMetricsEvery)
	if c.Metrics == nil {
		c.Metrics, c.MetricsEvery = noMetrics{}, -1
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if err := errors.Join(w...); err != nil {
		return Config{}, fmt.Errorf("keyring configuration: %w", err)
	}
	return c, nil
}

// Check says all that is wrong with the KEKs, the policies and the other options, as Open does, but for Dir, Raft,
// FSM and Transport: for a host that wants to know before it starts its raft. It takes an ID that is not set yet.
func (c Config) Check() error {
	var w wrongs
	if c.ID != "" {
		w.serverID(c.ID)
	}
	c.fillPolicies(&w)
	return errors.Join(w...)
}

// fillPolicies does so for what Check looks at.
func (c *Config) fillPolicies(w *wrongs) {
	*w = append(*w, c.checkKEKs()...)
	w.duration("Rotation.Every", max(c.Rotation.Every, 0), longest)
	w.duration("Rotation.Lead", c.Rotation.Lead, longest)
	w.duration("Rotation.Undo", max(c.Rotation.Undo, 0), longest)
	w.duration("Rotation.Retain", c.Rotation.Retain, longest)
	w.duration("RekeyGrace", c.RekeyGrace, longest)
	w.duration("MetricsEvery", max(c.MetricsEvery, 0), longest)
	if c.Rotation.Every == 0 {
		c.Rotation.Every = defaultEvery
	}
	if c.Rotation.Lead == 0 && c.Rotation.Every > 0 {
		c.Rotation.Lead = min(defaultLead, c.Rotation.Every/2)
	}
	w.unless(c.Rotation.Every < 0 || c.Rotation.Lead >= 0 && c.Rotation.Lead < c.Rotation.Every,
		"Rotation.Lead %v is not between zero and Every %v", c.Rotation.Lead, c.Rotation.Every)
	c.Rotation.Undo = cmp.Or(c.Rotation.Undo, defaultUndo)
	w.unless(c.Rotation.Retain == 0 || c.Data != nil, "Rotation.Retain is set and Data is nil: nothing could tell that a key is not needed")
	w.unless(c.RekeyRate >= 0, "RekeyRate %d is negative", c.RekeyRate)
	c.Tokens.fill(w)
	c.Backups.fill(w)
}

func (t *TokenPolicy) fill(w *wrongs) {
	w.duration("Tokens.MaxTTL", t.MaxTTL, longest)
	w.duration("Tokens.Leeway", t.Leeway, longestLeeway)
	t.Algorithm = cmp.Or(t.Algorithm, "RS256")
	t.MaxTTL = cmp.Or(t.MaxTTL, defaultMaxTTL)
	t.Leeway = cmp.Or(t.Leeway, defaultLeeway)
	w.unless(slices.Contains(jwt.Algorithms(), t.Algorithm),
		"Tokens.Algorithm %q is none of RS256, ES256, EdDSA", t.Algorithm)
	w.unless(t.Issuer == "" || isIssuer(t.Issuer),
		"Tokens.Issuer %q is no http or https URL, or has a user, a query or a fragment", t.Issuer)
	w.unless(t.JWKSURL == "" || isWebURL(t.JWKSURL) && len(t.JWKSURL) <= maxIssuerText,
		"Tokens.JWKSURL %.500q is no http or https URL of at most %d bytes, or has a user or a fragment", t.JWKSURL, maxIssuerText)
	for _, other := range t.AcceptIssuers {
		w.unless(other == "" || isIssuer(other),
			"Tokens.AcceptIssuers: %.500q is no http or https URL, or has a user, a query or a fragment", other)
	}
	w.unless(len(t.AcceptIssuers) <= maxAcceptIssuers && len(strings.Join(t.AcceptIssuers, "")) <= maxIssuerText,
		"Tokens.AcceptIssuers are more than %d, or longer than %d bytes together", maxAcceptIssuers, maxIssuerText)
	t.AcceptIssuers = slices.Clone(t.AcceptIssuers)
}

// Bounds on what the servers tell each other of their policies: see peer.StateAnswer.
const (
	maxAcceptIssuers = 16
	maxIssuerText    = 1500
)

// issuers are those whose tokens verify. None means any.
func (t *TokenPolicy) issuers() []string {
	if t.Issuer == "" {
		return nil
	}
	return append([]string{t.Issuer}, t.AcceptIssuers...)
}

// isIssuer reports whether discovery can start from the URL (OpenID Connect Discovery, section 3).
func isIssuer(s string) bool { return isWebURL(s) && !strings.Contains(s, "?") }

func isWebURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && !strings.Contains(s, "#")
}

// checkKEKs requires names that files can carry, each once, and a way to unwrap.
func (c Config) checkKEKs() []error {
	var errs []error
	if len(c.KEKs) == 0 {
		errs = append(errs, errors.New("KEKs is empty: name InlineKEK to keep each key's KEK in its own file"))
	}
	if len(c.KEKs) > maxKEKs {
		errs = append(errs, fmt.Errorf("%d KEKs, at most %d", len(c.KEKs), maxKEKs))
	}
	seen := map[string]bool{} // of KEKs: old ones may go by the name of a present one
	for i, k := range slices.Concat(c.KEKs, c.OldKEKs) {
		switch {
		case k == nil:
			errs = append(errs, fmt.Errorf("KEK %d is nil", i))
		case !printable(k.ID()):
			errs = append(errs, fmt.Errorf("KEK %d: the ID is not 1 to 128 printable ASCII characters", i))
		case i < len(c.KEKs) && seen[k.ID()]:
			errs = append(errs, fmt.Errorf("KEK %s is named twice", k.ID()))
		default:
			seen[k.ID()] = true
		}
	}
	return errs
}

// maxKEKs is how many KEKs one file takes.
const maxKEKs = 16

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// policy is the rotation policy as plan wants it.
func (c Config) policy() plan.Policy {
	p := plan.Policy{Every: max(c.Rotation.Every, 0), Lead: c.Rotation.Lead}
	if c.Rotation.Retain > 0 {
		p.Retain = max(c.Rotation.Retain, c.Tokens.MaxTTL+c.Tokens.Leeway)
	}
	return p
}

// tokens is the token policy as plan wants it.
func (c Config) tokens() plan.Tokens {
	return plan.Tokens{MaxTTL: c.Tokens.MaxTTL, Leeway: c.Tokens.Leeway}
}

// server is what the parts of a Keyring know that are of this package: this server, and how it is configured.
type server struct {
	*local.Server
	cfg Config
}
