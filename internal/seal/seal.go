// Package seal is the ciphertext envelope: what Encrypt returns and Decrypt takes.
//
// An envelope is, byte for byte,
//
//	version 1 | key ID 16 | N1 12 | N2 12 | ciphertext | tag 16
//
// with version 0x01. From N1 on it is XAES-256-GCM (c2sp.org/XAES-256-GCM) with nonce
// N1 || N2 and the caller's AAD unchanged, so any implementation of XAES opens an envelope
// without its first 17 bytes. The XAES key is the sealing key:
//
//	HKDF-SHA256(secret = root key, salt = none, info = "keyring v1 seal" || key ID), 32 bytes
//
// Version and key ID are not in the AAD, and need not be: another version is refused, and
// another key ID has another sealing key.
//
// N1 is random, drawn once an epoch, and the AES-256-GCM cipher that follows from it is
// kept; N2 is random for each message. So a message costs what AES-GCM costs.
//
// # Limits
//
// An epoch ends after about q = 2^28 messages or b = 2^44 blocks of AES, 256 TiB, whichever comes first. In an epoch
//
//	two messages have one N2       with a chance of at most q^2 / 2^97  = 2^-41   (NIST SP 800-38D, 8.2.2)
//	AES is told from random bits   with a chance of at most b^2 / 2^129 = 2^-41   (switching lemma)
//
// and each epoch has a key of its own, so the chances add up: 2^8 epochs, 2^36 messages or 2^52 blocks under one root key, stay
// below 2^-32, which is what NIST SP 800-38D asks of a key in 8.3. The bound for GCM under many keys at once, which counts
// forgeries too, is twice that: all blocks, those of attempts to forge included, times the blocks of one epoch, over 2^127
// (Hoang, Tessaro, Thiruvengadam: The Multi-user Security of GCM, Revisited, CCS 2018, theorem 3.1, as
// draft-irtf-cfrg-aead-limits simplifies it), 2^(52+44-127) = 2^-31. That two epochs draw one N1 has a chance
// of 2^-81. Beyond 2^36 messages the chance grows in proportion to them: rotate keys.
//
// All of this needs randomness that does not come twice. Two machines that are resumed from one snapshot of a running machine have one
// epoch, and, unless their kernel is told (vmgenid), one stream of random bits: messages with the same nonce and key, which
// give away the XOR of their plaintexts and let forgeries be made. Nothing here can notice that. A snapshot of a disk is no
// such thing: a process that starts draws another N1, from a kernel that has been seeded since.
//
// GCM commits to neither key nor plaintext: an attacker who knows two keys can make one ciphertext that opens under both.
// The key ID names one key, and nothing here tries several.
//
// The package touches nothing but memory and the system's randomness.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"example.com/keyring/internal/secret"
)

// Overhead is how much longer an envelope is than its plaintext.
const Overhead = headerLen + n2Len + tagLen

const (
	version   = 1
	idLen     = 16
	n1Len     = 12
	n2Len     = 12
	tagLen    = 16
	prefixLen = 1 + idLen // what goes before the XAES nonce
	headerLen = prefixLen + n1Len

	// MaxPlaintext is GCM's limit: its block counter has 32 bits, and two values are taken.
	MaxPlaintext = (1<<32 - 2) * 16
)

// The errors say no more than a caller may act on; in particular ErrOpen has no cause.
var (
	// ErrOpen is for all that is not an envelope of this key with this AAD.
	ErrOpen = errors.New("decryption failed")
	// ErrOverlap is for a dst whose spare capacity, as far as it would be written, shares
	// memory with an input.
	ErrOverlap = errors.New("dst overlaps an input")
	// ErrTooLong is for a plaintext over GCM's limit of about 64 GiB, and for an output that
	// an int can't measure.
	ErrTooLong = errors.New("plaintext too long")
	// ErrClosed is for a key that was wiped.
	ErrClosed = errors.New("key is closed")
)

// A Key seals and opens envelopes under one root key. It is safe for concurrent use, and
// holds no raw key bytes but the one XAES mask.
type Key struct {
	id    [idLen]byte
	limit uint64 // messages in an epoch

	// epoch is what Seal uses. It is nil until the first Seal, since most keys only open,
	// and after Wipe.
	epoch atomic.Pointer[epoch]

	// cache has epochs that Open has met. Copied on write under mu; nil after Wipe.
	cache atomic.Pointer[cache]

	seals, opens atomic.Uint64 // estimated, see count

	mu    sync.RWMutex // guards below, and every store to epoch and cache
	block cipher.Block // AES-256 under the sealing key; nil after Wipe

	// mask is the cmacMask of block, zeros after Wipe. A pointer, so that no %v of a Key
	// or of what has one prints it.
	mask *[aes.BlockSize]byte
}

// New returns the key that seals under root as id. It does not keep root.
func New(root *[32]byte, id [16]byte) (*Key, error) {
	k := &Key{id: id, limit: epochMessages}
	var err error
	if secret.Do(func() { err = k.expand(root) }); err != nil {
		return nil, err
	}
	k.cache.Store(new(cache))
	return k, nil
}

// expand sets block and mask.
func (k *Key) expand(root *[32]byte) error {
	sealing, err := hkdf.Key(sha256.New, root[:], nil, "keyring v1 seal"+string(k.id[:]), 32)
	if err != nil {
		return fmt.Errorf("derive the sealing key: %w", err)
	}
	defer clear(sealing)
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return fmt.Errorf("expand the sealing key: %w", err)
	}
	k.block, k.mask = block, new([aes.BlockSize]byte)
	cmacMask(k.mask, block)
	return nil
}

// ID returns the key ID that envelopes of k carry. It outlives Wipe.
func (k *Key) ID() [16]byte { return k.id }

// Seal appends the envelope of plaintext to dst and returns the extended slice. It
// allocates nothing if dst has Overhead+len(plaintext) bytes of spare capacity. That spare
// capacity must not share memory with plaintext or aad, so nothing is sealed in place:
// otherwise Seal returns ErrOverlap and has written nothing.
func (k *Key) Seal(dst, plaintext, aad []byte) ([]byte, error) {
	n, ok := sealedLen(len(dst), len(plaintext))
	if !ok {
		return nil, ErrTooLong
	}
	if out := spare(dst, n); overlap(out, plaintext) || overlap(out, aad) {
		return nil, ErrOverlap
	}
	e := k.epoch.Load()
	if e == nil {
		var err error
		if e, err = k.nextEpoch(nil); err != nil {
			return nil, err
		}
	}
	head := append(slices.Grow(dst, n), e.header[:]...)
	sealed := e.aead.Seal(head, nil, plaintext, aad)
	count(&k.seals, sealed[len(head):])
	if e.spent(sealed[len(head):], len(plaintext)+len(aad), k.limit) {
		if _, err := k.nextEpoch(e); err != nil {
			return nil, err
		}
	}
	return sealed, nil
}

// Open appends the plaintext of an envelope to dst and returns the extended slice. It
// returns nil and ErrOpen unless ciphertext is whole, of this key, and was sealed with the
// same aad; nil and empty are the same. What Open has then written to dst's spare
// capacity is zeros. An empty plaintext appended to a nil dst is nil.
//
// It allocates nothing if dst has the spare capacity and the epoch has been met before.
// That spare capacity must not share memory with ciphertext or aad, so nothing is opened in
// place: otherwise Open returns ErrOverlap and has written nothing.
func (k *Key) Open(dst, ciphertext, aad []byte) ([]byte, error) {
	cached := k.cache.Load()
	if cached == nil {
		return nil, ErrClosed
	}
	n := len(ciphertext) - Overhead
	if n < 0 || uint64(n) > MaxPlaintext {
		return nil, ErrOpen // no envelope is that short, or that long
	}
	if n > math.MaxInt-len(dst) {
		return nil, ErrTooLong
	}
	if out := spare(dst, n); overlap(out, ciphertext) || overlap(out, aad) {
		return nil, ErrOverlap
	}
	header := (*[headerLen]byte)(ciphertext)
	if e := k.epoch.Load(); e != nil && e.header == *header {
		return k.open(e, dst, ciphertext, aad)
	}
	if e := cached.find(header); e != nil {
		return k.open(e, dst, ciphertext, aad)
	}
	return k.openNew(dst, ciphertext, aad)
}

// open is Open in an epoch.
func (k *Key) open(e *epoch, dst, ciphertext, aad []byte) ([]byte, error) {
	plaintext, err := e.open(dst, ciphertext, aad)
	if err == nil {
		count(&k.opens, ciphertext[headerLen:])
	}
	return plaintext, err
}

// Counts returns about how often Seal and Open have been successful.
func (k *Key) Counts() (seals, opens uint64) { return k.seals.Load(), k.opens.Load() }

// count counts a message with the nonce n2. As in epoch.spent, one in 256 stands for all of them.
func count(n *atomic.Uint64, n2 []byte) {
	if n2[0] == 0 {
		n.Add(256)
	}
}

// openNew is Open for an epoch that is not in memory. Only here is the header checked by itself: an epoch in memory has
// matched all of it.
func (k *Key) openNew(dst, ciphertext, aad []byte) ([]byte, error) {
	if id, ok := KeyID(ciphertext); !ok || id != k.id {
		return nil, ErrOpen
	}
	k.mu.RLock()
	e, err := k.derive((*[headerLen]byte)(ciphertext))
	k.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	plaintext, err := k.open(e, dst, ciphertext, aad)
	if err != nil {
		return nil, err
	}
	// Only after a tag has verified is this N1 known to come from a holder of the key. A forger who could
	// fill the cache could also empty it.
	k.remember(e)
	return plaintext, nil
}

// Wipe ends the use of k: from its return on, Seal and Open return ErrClosed. Calls under
// way finish, or return ErrClosed. Wipe may be called again.
//
// It overwrites the bytes that k owns. The expanded AES keys inside crypto/aes and crypto/cipher, and the intermediate
// values inside crypto/hkdf, can't be overwritten from here. Wipe drops every reference to them, and the garbage collector
// frees them later, and overwrites them where package secret says so.
func (k *Key) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.mask[:])
	k.block = nil
	k.epoch.Store(nil)
	k.cache.Store(nil)
}

// KeyID returns the ID of the key that ciphertext claims to be sealed under. It is not
// ok if ciphertext is too short to be an envelope or has another version. Only Open tells
// whether the claim is true.
func KeyID(ciphertext []byte) (id [16]byte, ok bool) {
	if len(ciphertext) < Overhead || ciphertext[0] != version {
		return id, false
	}
	return [idLen]byte(ciphertext[1:prefixLen]), true
}

// sealedLen returns the length of an envelope, given the lengths of dst and plaintext. It
// is not ok if GCM would refuse the plaintext, or if the two together overflow an int.
func sealedLen(dst, plaintext int) (n int, ok bool) {
	if uint64(plaintext) > MaxPlaintext || plaintext > math.MaxInt-Overhead-dst {
		return 0, false
	}
	return plaintext + Overhead, true
}

// spare returns the n bytes after dst that appending them would write: none if dst lacks
// the capacity, since they would then be written to new memory.
func spare(dst []byte, n int) []byte {
	if cap(dst)-len(dst) < n {
		return nil
	}
	return dst[len(dst) : len(dst)+n]
}

// overlap reports whether a and b share a byte of memory. The cipher panics where
// this is true, so it has to be asked first.
func overlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	p := uintptr(unsafe.Pointer(unsafe.SliceData(a)))
	q := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return p < q+uintptr(len(b)) && q < p+uintptr(len(a))
}
