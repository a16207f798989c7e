/* Answers CPUID as an x86-64 processor with AVX2 alone would: AMD's Zen 3, without AVX-512, VNNI and bfloat16.

   A library whose CPUID instructions (0F A2) have been replaced by int3 and nop (CC 90), which scripts/avx2.py does,
   raises SIGTRAP at each. Here is the handler: it asks the processor, and hides what Zen 3 does not have. The bits are
   those of the "AMD64 Architecture Programmer's Manual", volume 3, appendix E, and of Intel's "Software Developer's
   Manual", volume 2A, CPUID. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

enum { NOP = 0x90, ZEN_3 = 0x00A00F11 /* family 19h, model 01h, stepping 1 */ };

static uint32_t bit(int number) { return UINT32_C(1) << number; }

/* What a processor with AVX2 alone has of the answer to (leaf, subleaf), in place. */
static void hide(uint32_t leaf, uint32_t subleaf, uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx) {
    switch (leaf) {
    case 0x1:
    case 0x80000001:
        *eax = ZEN_3;
        break;
    case 0x7:
        *eax = 0; /* no further subleaves: AVX-VNNI, AVX512_BF16, AVX-IFMA and AVX-VNNI-INT8 are told in the next */
        if (subleaf != 0) {
            *ebx = *ecx = *edx = 0;
            break;
        }
        /* AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        *ebx &= ~(bit(16) | bit(17) | bit(21) | bit(26) | bit(27) | bit(28) | bit(30) | bit(31));
        /* AVX512 VBMI, VBMI2; GFNI; AVX512 VNNI, BITALG, VPOPCNTDQ; MOVDIRI, MOVDIR64B */
        *ecx &= ~(bit(1) | bit(6) | bit(8) | bit(11) | bit(12) | bit(14) | bit(27) | bit(28));
        /* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX BF16; AVX512 FP16; AMX TILE, INT8 */
        *edx &= ~(bit(2) | bit(3) | bit(8) | bit(22) | bit(23) | bit(24) | bit(25));
        break;
    case 0xD: /* state that the system saves: masks, upper halves, registers 16 to 31; tiles */
        if (subleaf == 0)
            *eax &= ~(bit(5) | bit(6) | bit(7) | bit(17) | bit(18));
        else if ((subleaf >= 5 && subleaf <= 7) || subleaf == 17 || subleaf == 18)
            *eax = *ebx = *ecx = *edx = 0;
        break;
    case 0x1D: /* tiles */
    case 0x1E:
    case 0x24: /* AVX10 */
        *eax = *ebx = *ecx = *edx = 0;
        break;
    }
}

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (info->si_code != SI_KERNEL || *(const unsigned char *)registers[REG_RIP] != NOP) {
        signal(number, SIG_DFL); /* none of the replaced instructions: as without this handler */
        raise(number);
        return;
    }
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX], eax, ebx, ecx, edx;
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    hide(leaf, subleaf, &eax, &ebx, &ecx, &edx);
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTRAP, &action, 0);
}
