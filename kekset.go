package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/nks"
)

// kekSet is the KEKs of a keystore: it wraps material under all that wrap and unwraps it with
// any, and knows which of them do not answer.
type kekSet struct {
	all      []*askedKEK // in the order in which they are asked: an old one where no other opens
	wrapping []*askedKEK // the first of them
	old      []*askedKEK
}

// askedKEK is a KEK and how it answers. An old one may have the ID of a present one, and
// answers for itself.
type askedKEK struct {
	KEK
	trouble atomic.Pointer[trouble] // nil while there is none
}

// trouble is how a KEK does not answer.
type trouble struct {
	silent  error     // why it counts as away, or nil
	failing time.Time // since when it has done nothing but fail
}

func newKEKSet(wrapping, old []KEK) *kekSet {
	s := &kekSet{}
	for _, k := range slices.Concat(wrapping, old) {
		s.all = append(s.all, &askedKEK{KEK: k})
	}
	s.wrapping, s.old = s.all[:len(wrapping)], s.all[len(wrapping):]
	return s
}

// inline reports whether InlineKEK is one of them.
func (s *kekSet) inline() bool {
	return slices.ContainsFunc(s.all, func(k *askedKEK) bool { return k.ID() == inlineID })
}

// local is a KEK that needs nobody's answer, and knows by itself whether it unwraps.
type local interface{ unwraps() bool }

// probe asks every KEK that is not local to wrap and unwrap something, an old one only to
// unwrap, and reports whether one of those that wrap can also unwrap, or may yet: a KEK that
// does not answer is no reason not to start.
func (s *kekSet) probe(ctx context.Context) bool {
	unwraps := false
	for _, kek := range s.wrapping {
		if l, ok := kek.KEK.(local); ok {
			unwraps = unwraps || l.unwraps()
			kek.heard(ctx, nil) // what it was late for is over
			continue
		}
		wrapped, err := s.wrapUnder(ctx, kek, []byte("probe"), []byte("keyring v1 probe"))
		if err == nil {
			_, err = s.unwrapUnder(ctx, kek, wrapped, []byte("keyring v1 probe"))
		}
		if errors.Is(err, ErrWrapOnly) {
			err = nil
		} else {
			unwraps = true
		}
		kek.heard(ctx, err)
	}
	for _, kek := range s.old {
		var err error
		if _, ok := kek.KEK.(local); !ok {
			_, err = s.unwrapUnder(ctx, kek, []byte("probe"), []byte("keyring v1 probe"))
		}
		if errors.Is(err, ErrDecrypt) || errors.Is(err, ErrWrapOnly) {
			err = nil // it has answered
		}
		kek.heard(ctx, err)
	}
	return unwraps
}

// kekTimeout is how long one call of a KEK may take, and how long a KEK may do nothing but fail
// before it counts as away.
const kekTimeout = 10 * time.Second

// timed bounds one call of a KEK. The two that never wait would not look at the clock, which is not
// free where there are thousands of files.
func timed(ctx context.Context, kek *askedKEK) (context.Context, context.CancelFunc) {
	switch kek.KEK.(type) {
	case inlineKEK, *fileKEK:
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, kekTimeout)
}

func (s *kekSet) wrapUnder(ctx context.Context, kek *askedKEK, plaintext, aad []byte) ([]byte, error) {
	within, cancel := timed(ctx, kek)
	defer cancel()
	b, err := kek.Wrap(within, plaintext, aad)
	if err != nil {
		return nil, fmt.Errorf("wrap with KEK %s: %w", kek.ID(), ended(ctx, err))
	}
	return b, nil
}

func (s *kekSet) unwrapUnder(ctx context.Context, kek *askedKEK, wrapped, aad []byte) ([]byte, error) {
	within, cancel := timed(ctx, kek)
	defer cancel()
	b, err := kek.Unwrap(within, wrapped, aad)
	if err != nil {
		return nil, fmt.Errorf("unwrap with KEK %s: %w", kek.ID(), ended(ctx, err))
	}
	return b, nil
}

// ended adds to an error why the context has ended, if it has.
func ended(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// heard notes whether a KEK has answered. A call that was given up says nothing about it.
func (kek *askedKEK) heard(ctx context.Context, err error) {
	switch {
	case err == nil:
		kek.trouble.Store(nil)
	case ctx.Err() == nil:
		kek.trouble.Store(&trouble{silent: err})
	}
}

// failed notes that a file could not be read because its KEK has failed. That may be because
// of the file, so one failure says nothing; but there may be thousands of files.
func (kek *askedKEK) failed(ctx context.Context, began time.Time, err error) {
	if ctx.Err() != nil {
		return
	}
	was := kek.trouble.Load()
	if was != nil {
		began = was.failing
	}
	next := &trouble{failing: began}
	if time.Since(began) >= kekTimeout {
		next.silent = err
	}
	kek.trouble.CompareAndSwap(was, next) // or another goroutine has just noted the same
}

// works notes that a KEK has answered, which does not make one that is away present: only
// probe has it both wrap and unwrap.
func (kek *askedKEK) works() {
	if was := kek.trouble.Load(); was != nil && was.silent == nil {
		kek.trouble.CompareAndSwap(was, nil)
	}
}

// silence is why a KEK counts as away, or nil.
func (kek *askedKEK) silence() error {
	if t := kek.trouble.Load(); t != nil {
		return t.silent
	}
	return nil
}

// away says which of these KEKs does not answer, or nil.
func away(keks []*askedKEK) error {
	for _, kek := range keks {
		if err := kek.silence(); err != nil {
			return err
		}
	}
	return nil
}

// wrap wraps material under every KEK that wraps: one that fails fails it all.
func (s *kekSet) wrap(ctx context.Context, plaintext, aad []byte) ([]nks.Wrapped, *fault) {
	var all []nks.Wrapped
	for _, kek := range s.wrapping {
		wrapped, err := s.wrapUnder(ctx, kek, plaintext, aad)
		if err != nil {
			kek.heard(ctx, err)
			return nil, &fault{kek: kek.ID(), err: err}
		}
		all = append(all, nks.Wrapped{KEK: kek.ID(), Ciphertext: wrapped})
	}
	return all, nil
}

// prove opens a file that is not written yet, with one of the KEKs that have just wrapped it: what
// an old one opens is lost when the old one goes.
func (s *kekSet) prove(ctx context.Context, file *nks.File) (*nks.Material, *fault) {
	var why *fault
	for _, kek := range s.wrapping {
		secret, f := s.open(ctx, kek, file)
		if f == nil {
			kek.heard(ctx, nil) // it wraps and unwraps
			return secret, nil
		}
		if !errors.Is(f.err, ErrWrapOnly) {
			kek.heard(ctx, f.err)
		}
		why = worse(why, f)
	}
	return nil, why
}

// opened is what came of unwrapping a file.
type opened struct {
	secret *nks.Material
	stale  bool // the file is to be rewrapped
}

// unwrap opens a file with the first KEK that can. A KEK that refuses says nothing about the
// file, whose Sum is right: it may be another KEK under the same name. So only what comes out
// can make a file bad.
func (s *kekSet) unwrap(ctx context.Context, file *nks.File) (opened, *fault) {
	why := s.unknown(file)
	disowned := false
	for i, kek := range s.all {
		if entry(file, kek) == nil {
			continue
		}
		secret, f := s.ask(ctx, kek, file)
		if f == nil {
			s.settle(ctx, file, kek)
			return opened{secret, i >= len(s.wrapping) || disowned || s.stale(ctx, file)}, nil
		}
		disowned = disowned || !f.away && !errors.Is(f.err, ErrWrapOnly)
		why = worse(why, f)
	}
	return opened{}, why
}

// salted is a KEK whose files share a salt, as soon as it has opened one of them.
type salted interface{ settled() bool }

// settle shows a file that another KEK has opened to those that look for their salt.
func (s *kekSet) settle(ctx context.Context, file *nks.File, opener *askedKEK) {
	for _, kek := range s.wrapping {
		if l, ok := kek.KEK.(salted); !ok || kek == opener || l.settled() || entry(file, kek) == nil {
			continue
		}
		if secret, f := s.ask(ctx, kek, file); f == nil {
			secret.Wipe()
		}
	}
}

// unknown is the fault of a file that names KEKs which are not configured, or nil.
func (s *kekSet) unknown(file *nks.File) *fault {
	var names []string
	for _, w := range file.Wrapped {
		if !slices.ContainsFunc(s.all, func(k *askedKEK) bool { return k.ID() == w.KEK }) {
			names = append(names, w.KEK)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &fault{kek: names[0], here: true, err: fmt.Errorf("no KEK %s is configured", strings.Join(names, " or "))}
}

// entry returns what a file has for a KEK, or nil.
func entry(file *nks.File, kek KEK) []byte {
	for _, w := range file.Wrapped {
		if w.KEK == kek.ID() {
			return w.Ciphertext
		}
	}
	return nil
}

// ask has a KEK open a file, unless it is known to be away, and counts its failures.
func (s *kekSet) ask(ctx context.Context, kek *askedKEK, file *nks.File) (*nks.Material, *fault) {
	if err := kek.silence(); err != nil {
		return nil, &fault{kek: kek.ID(), here: true, away: true, err: err}
	}
	began := time.Now()
	secret, f := s.open(ctx, kek, file)
	if f != nil && f.here && !errors.Is(f.err, ErrDecrypt) && !errors.Is(f.err, ErrWrapOnly) {
		kek.failed(ctx, began, f.err)
	} else {
		kek.works()
	}
	return secret, f
}

// open has a KEK open a file, and says whose fault it is if it does not. Content that is no
// key is the file's where the KEK authenticates what it unwraps, as those of this package do.
func (s *kekSet) open(ctx context.Context, kek *askedKEK, file *nks.File) (*nks.Material, *fault) {
	plaintext, err := s.unwrapUnder(ctx, kek, entry(file, kek), file.AAD())
	switch {
	case errors.Is(err, ErrDecrypt):
		return nil, &fault{kek: kek.ID(), here: true, err: fmt.Errorf("another KEK by that name, or an altered file: %w", err)}
	case err != nil:
		return nil, &fault{kek: kek.ID(), here: true, err: err}
	}
	secret, err := decodeChecked(plaintext, file)
	if err == nil {
		return secret, nil
	}
	if _, ok := kek.KEK.(local); ok {
		return nil, &fault{mine: true, err: err}
	}
	return nil, &fault{kek: kek.ID(), here: true, err: fmt.Errorf("what KEK %s unwraps is not the key: %w", kek.ID(), err)}
}

// worse picks what to report, and to act on, when no KEK opens a file: first what may pass or
// be another KEK's, then a content that is wrong, then a KEK that never unwraps.
func worse(a, b *fault) *fault {
	rank := func(f *fault) int {
		switch {
		case errors.Is(f.err, ErrWrapOnly):
			return 0
		case f.mine:
			return 1
		}
		return 2
	}
	if a == nil || rank(b) >= rank(a) {
		return b
	}
	return a
}

// named reports whether a file is wrapped under KEKs that have the names of those that wrap.
func (s *kekSet) named(file *nks.File) bool {
	for _, kek := range s.wrapping {
		if entry(file, kek) == nil {
			return false
		}
	}
	return len(file.Wrapped) == len(s.wrapping)
}

// shared reports whether an old KEK has the name of a present one.
func (s *kekSet) shared(kek *askedKEK) bool {
	return slices.ContainsFunc(s.old, func(o *askedKEK) bool { return o.ID() == kek.ID() })
}

// stale reports whether a file that a present KEK has opened is to be rewrapped: its KEKs are
// not those that wrap. Where an old KEK has the name of a present one, the present one must
// open its entry.
func (s *kekSet) stale(ctx context.Context, file *nks.File) bool {
	if !s.named(file) {
		return true
	}
	for _, kek := range s.wrapping {
		if !s.shared(kek) {
			continue
		}
		secret, f := s.ask(ctx, kek, file)
		if f == nil {
			secret.Wipe()
		} else if !errors.Is(f.err, ErrWrapOnly) {
			return true
		}
	}
	return false
}
