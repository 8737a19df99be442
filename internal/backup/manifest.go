package backup

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
)

// Bounds on a manifest, in bytes. It is read piece by piece, and no further than the first piece that is too long
// or not what it should be. So it costs no more memory than its keys.
const (
	maxManifest = 64 << 20 // far above 100,000 keys
	maxScalar   = 1 << 10
	maxKey      = 1 << 10
	maxRaftMeta = 1 << 20
)

var (
	raftMetaType = bounded.For[manifestRaft](maxRaftMeta)
	keyType      = bounded.For[manifestKey](maxKey)
)

type manifestRaft struct {
	raft.SnapshotMeta `bound:"elements=4096,bytes=65536"`
}

type manifestKey struct {
	Key `bound:"bytes=64"`
}

// decodeManifest reads a manifest as json.Marshal writes it, or json.MarshalIndent: its members in their
// order, its keys in the order of their IDs.
func decodeManifest(r io.Reader) (m Manifest, err error) {
	p := newPieces(r)
	p.delim('{')
	m.Format = p.text("Format")
	if p.err == nil && m.Format != Format && m.Format != unsignedFormat {
		return m, fmt.Errorf("%w: its format is %.64q, this build reads %q and %q", nks.ErrCorrupt, m.Format, unsignedFormat, Format)
	}
	m.Cluster = p.text("Cluster")
	p.parse(&m.Created, p.text("Created"))
	p.name("Raft")
	m.Raft = value(p, maxRaftMeta, raftMetaType).SnapshotMeta
	p.name("Keys")
	if p.list() {
		for p.more() {
			m.addKey(p, value(p, maxKey, keyType).Key)
		}
		p.delim(']')
	}
	p.delim('}')
	p.end()
	if p.err == nil {
		p.err = checkRaftMeta(m.Raft)
	}
	if p.err != nil {
		return m, fmt.Errorf("%w: manifest: %w", nks.ErrCorrupt, p.err)
	}
	return m, nil
}

// addKey adds a key that can be the next.
func (m *Manifest) addKey(p *pieces, key Key) {
	i := slices.Index(states, key.State)
	n := len(m.Keys)
	switch {
	case p.err != nil:
	case key.ID == meta.KeyID{} || key.Check == meta.CheckValue{} || i < 0:
		p.err = errors.New("a key without ID, check value or state")
	case n > 0 && compareIDs(m.Keys[n-1].ID, key.ID) >= 0:
		p.err = errors.New("keys out of order")
	default:
		key.State = states[i] // not the text in what was read
		m.Keys = append(m.Keys, key)
	}
}

var states = []meta.State{
	meta.StatePrepublished, meta.StateActive, meta.StateInactive, meta.StateRekeying, meta.StateDeprecated,
}

// checkRaftMeta says why raft could not go on from a snapshot that is described so, or nil.
func checkRaftMeta(s raft.SnapshotMeta) error {
	switch {
	case s.Version < raft.SnapshotVersionMin || s.Version > raft.SnapshotVersionMax:
		return fmt.Errorf("a raft snapshot of version %d", s.Version)
	case s.Index == 0 || s.Index > raftwire.MaxIndex || s.Term == 0 || s.Term > raftwire.MaxIndex: // the log has to go on
		return fmt.Errorf("a raft snapshot of index %d and term %d", s.Index, s.Term)
	case s.ConfigurationIndex > s.Index:
		return fmt.Errorf("a raft snapshot of index %d, with the configuration of index %d", s.Index, s.ConfigurationIndex)
	case s.Size < int64(meta.SnapshotHead):
		return fmt.Errorf("a raft snapshot of %d bytes", s.Size)
	case s.Version == 0: // it has Peers in place of a configuration
		return nil
	}
	return raftwire.CheckConfiguration(s.Configuration)
}

// pieces reads JSON piece by piece. A piece that is longer than it may be is an error before it is in
// memory. The first error stays, and what is read after it is nothing.
type pieces struct {
	in   *json.Decoder
	from *allowance
	err  error
}

// allowance is a reader that ends with an error where it is not allowed to go on.
type allowance struct {
	io.Reader
	read, upTo int64
}

var errLongPiece = errors.New("a part of it is longer than it may be")

func (a *allowance) Read(b []byte) (int, error) {
	if a.read >= a.upTo {
		return 0, errLongPiece
	}
	n, err := a.Reader.Read(b[:min(int64(len(b)), a.upTo-a.read)])
	a.read += int64(n)
	return n, err
}

func newPieces(r io.Reader) *pieces {
	from := &allowance{Reader: r}
	return &pieces{in: json.NewDecoder(from), from: from}
}

// token returns the next of a bounded size.
func (p *pieces) token() (t json.Token) {
	if p.err == nil {
		p.from.upTo = p.in.InputOffset() + maxScalar
		t, p.err = p.in.Token()
	}
	return t
}

func (p *pieces) delim(want json.Delim) {
	if t := p.token(); p.err == nil && t != want {
		p.err = fmt.Errorf("%.64q in place of %q", fmt.Sprint(t), want)
	}
}

func (p *pieces) name(want string) {
	if t := p.token(); p.err == nil && t != want {
		p.err = fmt.Errorf("%.64q in place of %q", fmt.Sprint(t), want)
	}
}

// list begins one, or reads a null.
func (p *pieces) list() bool {
	t := p.token()
	if p.err == nil && t != nil && t != json.Delim('[') {
		p.err = fmt.Errorf("%.64q in place of a list", fmt.Sprint(t))
	}
	return p.err == nil && t != nil
}

func (p *pieces) more() bool {
	p.from.upTo = p.in.InputOffset() + maxScalar
	return p.err == nil && p.in.More()
}

// text reads a member that is one.
func (p *pieces) text(name string) string {
	p.name(name)
	t := p.token()
	s, ok := t.(string)
	if p.err == nil && !ok {
		p.err = fmt.Errorf("%s is no text", name)
	}
	return s
}

func (p *pieces) parse(v encoding.TextUnmarshaler, text string) {
	if p.err == nil {
		p.err = v.UnmarshalText([]byte(text))
	}
}

// value reads one of at most so many bytes.
func value[T any](p *pieces, most int64, as bounded.Type[T]) (v T) {
	if p.err != nil {
		return v
	}
	p.from.upTo = p.in.InputOffset() + most
	var raw json.RawMessage
	if p.err = p.in.Decode(&raw); p.err == nil {
		v, p.err = as.Decode(raw)
	}
	return v
}

// end requires that nothing follows.
func (p *pieces) end() {
	if p.err != nil {
		return
	}
	p.from.upTo = p.in.InputOffset() + maxScalar
	if _, err := p.in.Token(); err != io.EOF {
		p.err = errors.Join(errors.New("something follows it"), err)
	}
}
