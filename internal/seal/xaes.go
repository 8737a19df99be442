package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
)

// The key derivation of XAES-256-GCM is the counter KDF of NIST SP 800-108r1 over
// AES-256-CMAC. Its input is always one whole block, so CMAC comes down to one XOR
// and one AES call.

// Both functions write to where the caller says: a result returned by value would leave a
// copy on the heap that nobody can overwrite.

// cmacMask sets k1 to the CMAC subkey of a whole block: the encryption of zero, doubled
// in GF(2^128). k1 is zero before.
func cmacMask(k1 *[aes.BlockSize]byte, block cipher.Block) {
	block.Encrypt(k1[:], k1[:])
	var carry byte
	for i := len(k1) - 1; i >= 0; i-- {
		k1[i], carry = k1[i]<<1|carry, k1[i]>>7
	}
	// Without a branch: the carry is a bit of a secret.
	k1[len(k1)-1] ^= carry * 0b10000111
}

// subkey sets kx to the AES-256-GCM key for n1, the first half of the nonce. Block is
// AES-256 under the XAES key, and mask its cmacMask.
func subkey(kx *[32]byte, block cipher.Block, mask *[aes.BlockSize]byte, n1 []byte) {
	halves := [2][]byte{kx[:aes.BlockSize], kx[aes.BlockSize:]}
	for i, half := range halves {
		// Counter of 16 bits, the label "X", a zero byte, and N1 as the context.
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], n1)
		subtle.XORBytes(half, half, mask[:])
		block.Encrypt(half, half)
	}
}
