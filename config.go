package keyring

// Config, and the meaning of its zero values.

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

// RotationPolicy says when the leader rotates by itself. Each duration that is set is at least a second and
// at most 100 years. So a number without a unit, which is nanoseconds, is rejected.
type RotationPolicy struct {
	// Every is the time between two activations. Zero means 30 days. Negative means that only Rotate rotates.
	Every time.Duration
	// Lead is how long before its activation the next key is prepublished. It must be less than Every. Zero
	// means 24 hours, or half of Every if that is less.
	Lead time.Duration
	// Undo is how long the file of a removed key is kept aside. During that time a raft snapshot from before
	// the removal brings the key back. Zero means 7 days; negative means that the file is unlinked at once.
	// Set the same value on all servers: the longer of a server's and the leader's value counts.
	Undo time.Duration
	// Retain is how long a key is kept after its retirement. Then its data is re-encrypted, and the key is
	// removed. A key is never removed while tokens of it may still be valid. Zero keeps keys for ever. Retain
	// needs Config.Data.
	Retain time.Duration
}

// TokenPolicy says how tokens are signed and verified. It must be the same on every server. Each duration
// that is set is at least a second.
type TokenPolicy struct {
	// Issuer is the iss of the tokens: the http or https URL below which relying parties find WellKnown,
	// without query or fragment. Empty means that tokens need no iss, that Verify does not check it, and that
	// there is no discovery document.
	Issuer string
	// AcceptIssuers are further issuers whose tokens Verify accepts. With them Issuer can change without
	// rejected tokens; docs/tokens.md has the order of the steps. They are URLs like Issuer: at most 16, of
	// at most 1,500 bytes together. An empty one stands for tokens without iss. Sign accepts claims with one
	// of them as iss, and WellKnownFor serves the discovery document of each. Empty means none.
	AcceptIssuers []string
	// JWKSURL is the jwks_uri of the discovery documents. Set it if the JWKS is served elsewhere than below
	// the issuer. It is an http or https URL. Empty means /.well-known/jwks.json below the issuer.
	JWKSURL string
	// Algorithm is the algorithm of new signing keys: RS256, ES256 or EdDSA. Existing keys keep theirs. Empty
	// means RS256.
	Algorithm string
	// MaxTTL is the longest life of a token, and the life of a token whose claims have no exp. A retired key
	// verifies tokens for this long. So after you shorten MaxTTL, older tokens may be rejected before they
	// expire. Zero means 24 hours; the maximum is 100 years.
	MaxTTL time.Duration
	// Leeway is how far the clocks of two servers may differ. It also covers the time in which a rotation
	// commits. A larger difference is a ProblemClock. Zero means one minute; the maximum is a day.
	Leeway time.Duration
}

// Config configures Open. Dir, ID, Raft, FSM and KEKs are required.
type Config struct {
	// Dir is the keystore directory. Open creates it if it is missing, and sets its mode to 0700. Only one
	// process at a time can use it.
	Dir string
	// ID is this server's ID in the raft configuration: at most 255 bytes of UTF-8.
	ID raft.ServerID
	// Raft is the host's raft. It runs on FSM, or on a Mux with FSM. The host shuts it down. If it does not
	// restore its snapshots at the start, see FSM.Load.
	Raft *raft.Raft
	// FSM is the FSM that Raft applies to. It serves one Keyring at a time.
	FSM *FSM
	// Transport carries requests to the other servers. Nil is enough for a cluster of one server.
	Transport Transport
	// KEKs wrap the key material. Each of them wraps every key, and any one of them is enough to unwrap it.
	// At least one must be able to unwrap.
	KEKs []KEK
	// OldKEKs unwrap material that was wrapped under them earlier. They wrap nothing. Rewrap moves the files
	// to KEKs; Status says how many are left. WaitReady does not wait for OldKEKs. Empty means none.
	OldKEKs []KEK
	// Rotation says when keys rotate. Zero means every 30 days.
	Rotation RotationPolicy
	// Tokens says how tokens are signed and verified. Zero means RS256 and at most 24 hours.
	Tokens TokenPolicy
	// Data finds the ciphertexts that have to be re-encrypted. RotateOptions.Full, Remove and
	// RotationPolicy.Retain need it. Nil means that these are not possible. NoData says that the host stores
	// no ciphertexts.
	Data SealedData
	// RekeyGrace is for data that is not in this raft, or whose FSM does not call Admit. It is how long after
	// a rotation a writer may still store a ciphertext of the previous key. The last scan waits for that
	// long. Zero is right if Admit guards all writes; otherwise it is at least a second and at most 100
	// years.
	RekeyGrace time.Duration
	// RekeyRate is the maximum number of records that are re-encrypted in a second. Zero means no limit.
	RekeyRate int
	// Backups schedules the backups that the leader makes by itself. Zero makes none.
	Backups BackupSchedule
	// Audit receives every Event that this server applies while the keyring is open: one at a time, in the
	// order of the log, soon after it was applied. It does not receive the events that this server got in a
	// snapshot or applied before Open: another server has reported those. After a restart raft applies the
	// log since the last snapshot again, and Audit receives its events again. So Audit receives each event at
	// least once; keep one for each Index, Step and Key. Close waits for it. Nil tells nobody.
	Audit func(Event)
	// Metrics receives the metrics of this server: see MetricInfos. The packages gometrics and prometheus
	// have ready implementations. Nil means none.
	Metrics Metrics
	// MetricsEvery is the interval at which Metrics receives the metrics of MetricInfos. It receives the
	// progress of a rekey when that changes. Zero means 30 seconds, because some sinks forget a gauge that is
	// not set again. Negative means never. Otherwise it is at least a second.
	MetricsEvery time.Duration
	// Logger receives log lines for operators, and never key material. Nil logs nothing.
	Logger hclog.Logger
	// EveryBuild says that every build of the service that a server of this cluster may run contains the
	// keyring. Then the keyring's first command waits at most 10 seconds for a server that does not answer.
	// Otherwise it waits until that server has answered, because a build without the keyring could not apply
	// the command.
	EveryBuild bool
	// Certificates returns when the certificates of this server's connections end and, on the leader, those
	// of the other servers. The first to end comes first. Its error says why other servers reject this
	// server's certificate now, or what is wrong with its files. Status, ProblemCertificate and the metric
	// keyring.certificate.left report both. It is called from several goroutines, and must not block. The
	// packages port and node, and the module grpc, set it. Nil reports nothing.
	Certificates func() ([]Certificate, error)
	// Problems returns the problems of the host's own part, such as the disk of its raft, for Status. A
	// problem with an empty Advice gets the advice for its Kind. It is called from several goroutines, and
	// must not block. See Notify. Nil returns none.
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

// withDefaults replaces zero values by their defaults, or returns all that is wrong.
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

// Check returns all that is wrong with the KEKs, the policies and the other options, as Open does. It does
// not check Dir, Raft, FSM and Transport, and accepts an empty ID. A host can call it before it starts its
// raft.
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
	w.unless(c.Rotation.Retain == 0 || c.Data != nil, "Rotation.Retain is set and Data is nil: nothing could prove that a key is no longer needed")
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
		errs = append(errs, errors.New("KEKs is empty: use InlineKEK to keep each key's KEK in the file of the key"))
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
